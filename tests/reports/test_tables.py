from adlight.metrics.results import Results
from adlight.reports.tables import print_defects, print_results

FIGURES = {"auroc": 0.98765, "ap": 0.5, "f1_max": 0.25, "f1_calibrated": 0.125, "trivial_f1": 0.75}
COUNTS = {"normal": 3.0, "anomalous": 6.0}


def printed(capsys, results, notes=()):
    print_results(results, "0.5 (max of held-out normal images)", list(notes))
    return capsys.readouterr().out


def test_several_categories(capsys):
    tables = {"bottle": {**FIGURES, **COUNTS, "pixel_auroc": 0.9}, "screw": {**FIGURES, **COUNTS}}
    out = printed(capsys, Results(FIGURES, {**FIGURES, "normal": 6.0, "anomalous": 12.0}, tables), ["loss: 1 ssim"])
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert set(lines) == {"bottle", "screw", "mean of categories", "pooled"}
    assert all(word in lines["bottle"] for word in ("3 + 6", " 0.988 ", " 0.500 ", " 0.250 ", " 0.125 ", " 0.750 "))
    assert " 0.900 " in lines["bottle"] and " - " in lines["screw"]  # left out is no zero
    assert "threshold: 0.5 (max of held-out normal images)\nloss: 1 ssim\n" in out
    assert "AUPRO" not in out and "pixel" in out


def test_intervals_are_shown_as_half_their_width(capsys):
    ends = {"auroc_lower": 0.9, "auroc_upper": 0.96}
    out = printed(capsys, Results(FIGURES, FIGURES, {"bottle": {**FIGURES, **COUNTS, **ends}}))
    assert " 0.988 ± 0.030 " in out and " 0.500 │" in out and "0.500 ±" not in out


def test_defects_have_a_row_each(capsys):
    found = {"normal": 3, "anomalous": 2, "auroc": 0.75, "ap": 0.5, "recall_calibrated": 1.0}
    without = {"normal": 0, "anomalous": 1, "recall_calibrated": 0.25}
    print_defects(Results({}, {}, {}, defects={"[a]": {"hole": found, "scratch": found}, "b": {"cut": without}}))
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert [row[1:7] for row in rows if len(row) > 6] == [
        ["[a]", "hole", "3 + 2", "0.750", "0.500", "1.000"],
        ["", "scratch", "3 + 2", "0.750", "0.500", "1.000"],
        ["b", "cut", "0 + 1", "-", "-", "0.250"],
    ]
    print_defects(Results({}, {}, {}))
    assert capsys.readouterr().out == ""


def test_one_category_needs_no_mean(capsys):
    out = printed(capsys, Results(FIGURES, FIGURES, {"bottle": {**FIGURES, **COUNTS}}))
    assert "mean of categories" not in out and "pooled" not in out and "pixel" not in out


def test_without_anomalies(capsys):
    out = printed(capsys, Results({"fpr_calibrated": 0.25}, {}, {"good": {"normal": 4.0, "anomalous": 0.0}}))
    assert "4 + 0" in out and "AUROC" not in out and "nan" not in out


def test_long_notes_are_not_broken(capsys):
    note = "numbers: /" + "a" * 300
    assert note in printed(capsys, Results(FIGURES, FIGURES, {"a[b]c": {**FIGURES, **COUNTS}}), [note])
