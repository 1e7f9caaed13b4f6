"""Tables as CSV, Markdown and in the terminal: every number, in columns that fit."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from makers import fake_run

from adlight.cli.sweep import COLUMNS
from adlight.metrics.results import Results
from adlight.reports import tables, terminal
from adlight.reports.collect import collect
from adlight.reports.grouping import average_runs
from adlight.reports.reference import compare
from adlight.reports.tables import print_defects, print_results
from adlight.reports.terminal import COUNT, DIFFERENCE, HIGH, LOW, PAPER, TEXT, VALUE
from adlight.runs.log import copy_output

FIGURES = {"auroc": 0.98765, "ap": 0.5, "f1_max": 0.25, "f1_calibrated": 0.125, "trivial_f1": 0.75}
COUNTS = {"normal": 3.0, "anomalous": 6.0}
ENDS = {f"{name}_{end}": value for name in ("auroc", "ap", "f1_max") for end, value in (("lower", 0.9), ("upper", 1))}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two finished runs that differ in the mask ratio, and a failed one."""
    root = tmp_path_factory.mktemp("tables")
    fake_run(root / "0", model__mask_ratio=0.5, draw=1)
    fake_run(root / "1", model__mask_ratio=0.75, draw=2)
    fake_run(root / "2", model__mask_ratio=0.9, finished=False, error="too, large\n")
    (root / "paper.csv").write_text("category,x\nbottle,0.7\nscrew,0.8\n")
    return compare(collect([str(root)]), [str(root / "paper.csv")], None)


def test_results_csv(found):
    rows = list(csv.DictReader(io.StringIO(tables.results_csv(found))))
    assert [(row["name"], row["status"], row["level"], row["category"]) for row in rows] == [
        *((run, "finished", *of) for run in "01" for of in (
            ("category", "bottle"), ("category", "screw"), ("mean", "mean of 2"), ("pooled", "pooled"))),
        ("2", "failed", "", ""),
    ]  # fmt: skip
    content = json.loads(Path(rows[4]["folder"], "metrics.json").read_text())
    for row, table in zip(rows[4:7], [*content["categories"].values(), content], strict=True):
        for name in ("auroc", "auroc_lower", "auroc_upper", "f1_calibrated", "precision_at_f1_max"):
            assert row[name] == repr(table[name])
    bottle, _, mean = rows[4:7]
    assert (bottle["normal_images"], bottle["anomalous_images"], bottle["threshold"]) == ("10", "10", "2.0")
    assert (bottle["epochs"], bottle["seconds"], bottle["generator_steps"]) == ("3", "12.5", "")
    assert (bottle["reference_auroc"], float(mean["reference_auroc"])) == ("0.7", pytest.approx(0.75))
    assert [row["config.model.mask_ratio"] for row in rows[::4]] == ["0.5", "0.75", "0.9"]
    assert "config.model.network.encoder_depth" not in rows[0] and rows[0]["config.seed"] == "0"
    assert rows[-1]["error"] == "too, large" and rows[-1]["auroc"] == ""
    assert {*COLUMNS} - {*rows[0]} == {"job", "overrides", "pixel_auroc", "aupro"}  # a sweep's table has the same names


def test_no_precision_without_anomalous_images(tmp_path):
    fake_run(tmp_path / "run")
    path = tmp_path / "run" / "predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "bottle,x,1," not in line))
    table = tables.by_decision(collect([str(tmp_path)])).set_index(("category", TEXT))
    assert table["precision", VALUE].isna().to_dict() == {"bottle": True, "screw": False}
    assert table["recall", VALUE].isna().to_dict() == {"bottle": True, "screw": False}


def test_results_md(found):
    text = tables.results_markdown(found, average_runs(found.results), "a title")
    row = found.headlines.iloc[0]
    assert text.startswith("# a title\n\n2 finished, 1 failed\n\n| name | mask_ratio | status | category | AUROC |")
    half = (row["auroc_upper"] - row["auroc_lower"]) / 2
    assert f"| 0 | 0.5 | finished | mean of 2 | {row['auroc']:.3f} ± {half:.3f} | 0.750 |" in text  # the paper's mean
    assert "| 2 | 0.9 | failed |  |  |" in text and "* 2: failed. too, large" in text


def test_the_result_table_says_what_its_columns_are(found):
    table = tables.by_run(found)
    kinds = [kind for title, kind in table if title == "AUROC"]
    assert kinds == [VALUE, LOW, HIGH, PAPER, DIFFERENCE] and table["epochs", COUNT].tolist()[:2] == [3, 3]
    assert table["AUROC", DIFFERENCE].equals(table["AUROC", VALUE] - table["AUROC", PAPER])
    table = tables.by_category(found)
    assert table["category", TEXT].tolist() == ["bottle", "screw", "pooled"] * 2
    assert table["images", TEXT].tolist() == ["10 + 10"] * 6


def test_a_mean_is_beside_what_its_own_runs_are_beside(tmp_path):
    for digit in (3, 7):
        words = {"dataset": "mnist", "dataset__normal": digit}
        fake_run(tmp_path / f"gan{digit}", (str(digit),), model="gan", experiment="gan_mnist", **words)
        fake_run(tmp_path / f"knn{digit}", (str(digit),), model="knn", **words)
    found = compare(collect([str(tmp_path)]), None, None)
    table = tables.by_mean(average_runs(found.results)).set_index(("runs", TEXT))
    assert table["best F1 (oracle)", PAPER]["gan"] == pytest.approx((0.9909 + 0.9779) / 2)
    assert pd.isna(table["best F1 (oracle)", PAPER]["knn"])


def test_no_two_columns_have_one_name(tmp_path):
    for category in ("bottle", "a|b"):
        fake_run(tmp_path / category, (category,), dataset__category=category)
    found = collect([str(tmp_path)])
    table = tables.by_run(found)
    assert [title for title, kind in table if kind == TEXT] == ["name", "dataset.category", "category", "images"]
    short = tables.by_run(found, short=True)  # the names say the rest
    assert [title for title, kind in short if kind == TEXT] == ["name"]
    assert "| a\\|b | a\\|b | a\\|b |" in terminal.to_markdown(table)


def test_many_settings_share_a_column(tmp_path):
    for i in range(2):
        fake_run(tmp_path / str(i), draw=i, **{f"model__{name}": i for name in "abcdefg"})
    found = collect([str(tmp_path)])
    assert tables.by_run(found)["differs in", TEXT].iloc[1] == "a=1, b=1, c=1, d=1, e=1, f=1 and 1 more"
    table = tables.by_setting(found)  # the longer side downwards
    assert table.columns.get_level_values(0).tolist() == ["setting", "0", "1"] and len(table) == 7
    fake_run(tmp_path / "2", model__a=0)
    many = collect([str(tmp_path / "[02]")])
    assert tables.by_setting(many)["setting", TEXT].tolist() == [f"model.{name}" for name in "bcdefg"]
    assert tables.by_setting(many)["2", TEXT].unique().tolist() == ["(not set)"]


def printed(capsys, results, notes=()):
    print_results(results, "0.5 (max of held-out normal images)", list(notes))
    return capsys.readouterr().out


def lines_of(out):
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def test_several_categories(capsys):
    several = {"bottle": {**FIGURES, **COUNTS, "pixel_auroc": 0.9}, "screw": {**FIGURES, **COUNTS}}
    out = printed(capsys, Results(FIGURES, {**FIGURES, "normal": 6.0, "anomalous": 12.0}, several), ["loss: 1 ssim"])
    assert lines_of(out) == {
        "bottle": ["3 + 6", "0.988", "0.500", "0.250", "0.125", "0.750", "0.900"],
        "screw": ["3 + 6", "0.988", "0.500", "0.250", "0.125", "0.750", "-"],  # left out is not zero
        "mean of 2": ["", "0.988", "0.500", "0.250", "0.125", "0.750", "-"],
        "pooled": ["6 + 12", "0.988", "0.500", "0.250", "0.125", "0.750", "-"],
    }
    assert "threshold: 0.5 (max of held-out normal images)\nloss: 1 ssim\n" in out
    assert "AUPRO" not in out and "pixel" in out


def test_a_notebook_shows_it_as_printed_text_which_the_log_copies(monkeypatch, tmp_path):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.delenv("COLUMNS", raising=False)
    with copy_output(tmp_path / "train.log"):
        tables.print_table(pd.DataFrame({("run", TEXT): ["one"], ("AUROC", VALUE): [0.5]}), "results", ["a note"])
    log = (tmp_path / "train.log").read_text()
    assert all(word in log for word in ("results", "one", "0.500", "a note"))


def test_one_category_needs_no_mean_and_shows_half_its_intervals(capsys):
    out = printed(
        capsys, Results(FIGURES, FIGURES, {"a[b]c": {**FIGURES, **COUNTS, **ENDS}}), ["numbers: /" + "a" * 300]
    )
    assert lines_of(out) == {"a[b]c": ["3 + 6", "0.988 ± 0.050", "0.500 ± 0.050", "0.250 ± 0.050", "0.125", "0.750"]}
    assert "numbers: /" + "a" * 300 in out  # long lines are not broken


def test_without_anomalies(capsys):
    out = printed(capsys, Results({"fpr_calibrated": 0.25}, {}, {"good": {"normal": 4.0, "anomalous": 0.0}}))
    assert "4 + 0" in out and "AUROC" not in out and "nan" not in out.lower()


def test_defects_have_a_row_each(capsys):
    hole = {"normal": 3, "anomalous": 2, "auroc": 0.75, "ap": 0.5, "recall_calibrated": 1.0}
    without = {"normal": 0, "anomalous": 1, "recall_calibrated": 0.25}
    print_defects(Results({}, {}, {}, defects={"[a]": {"hole": hole, "scratch": hole}, "b": {"cut": without}}))
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["[a]", "hole", "3 + 2", "0.750", "0.500", "1.000"],
        ["[a]", "scratch", "3 + 2", "0.750", "0.500", "1.000"],
        ["b", "cut", "0 + 1", "-", "-", "0.250"],
    ]
    print_defects(Results({}, {}, {}))
    assert capsys.readouterr().out == ""


def test_names_and_paths_are_printed_as_they_are(capsys):
    table = pd.DataFrame({("run", TEXT): ["[red]:bug:"], ("AUROC", VALUE): [0.5]})
    tables.print_table(table, "runs/[bold]:bug:", ["numbers: runs/[bold]:bug:"])
    out = capsys.readouterr().out
    assert out.count("runs/[bold]:bug:") == 2 and "[red]:bug:" in out


def test_a_sweep_before_its_first_job(capsys):
    tables.print_table(tables.by_job([]), "sweep x", ["table: x"])
    assert "table: x" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 60])
def test_tables_fit_a_narrow_terminal(found, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    row = {**FIGURES, **COUNTS, **ENDS, "fpr_calibrated": 0.5, "pixel_auroc": 0.9, "aupro": 0.8}
    named = {f"a category with a very long name of its own {i}": row for i in range(2)}
    for call in (
        lambda: print_results(Results(row, row, named), "0.5", []),
        lambda: tables.print_table(tables.by_run(found, short=True), "runs"),
        lambda: tables.print_table(tables.by_origin(found), "runs"),
    ):
        call()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
        borders = [line for line in lines if line[0] in "│┃┏┡└"]
        assert max(map(len, borders)) <= width and len(lines) > 5 and "…" not in "".join(lines)
        assert sum(line[0] == "┏" for line in lines) == 1, "one block"
        assert not any(line.rstrip().endswith("±") or "± │" in line for line in lines), "a value must not be broken"


def test_a_narrow_terminal_shows_what_matters_and_names_the_rest(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {**FIGURES, **COUNTS, **ENDS, "fpr_calibrated": 0.5, "pixel_auroc": 0.9, "aupro": 0.8}
    print_results(Results(row, row, {"bottle": row, "screw": row}), "0.5", ["numbers: x"])
    out = capsys.readouterr().out
    table, notes = out[: out.index("└")], out[out.index("└") :]
    assert all(word in table for word in ("AUROC", "0.988 ± 0.050", "0.125", "0.500", "0.900", "0.800"))
    assert "oracle" not in table and "best F1 (oracle)" in notes and "AP" in notes
    monkeypatch.delenv("COLUMNS")
    print_results(Results(row, row, {"bottle": row}), "0.5", [])  # a file has no width of its own
    assert "oracle" in capsys.readouterr().out.split("└")[0]
