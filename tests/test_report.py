"""The report command: real and made-up runs in, three files out; every mistake in one line."""

import csv
import json
import re
import shutil

import pytest
from makers import fake_run
from processes import check_refused


@pytest.fixture(scope="module")
def place(adlight):
    """A sweep folder below the commands' folder: two good jobs, one failed, one damaged."""
    sweep = adlight.folder / "report_runs" / "sweep-1"
    for i, ratio in enumerate((0.5, 0.75)):
        fake_run(sweep / str(i), draw=i, model__mask_ratio=ratio)
    fake_run(sweep / "2", finished=False, model__mask_ratio=0.9, error="CUDA out of memory")
    (fake_run(sweep / "3") / "metrics.json").write_text("{")
    (adlight.folder / "bad.csv").write_text("a,b\n1,2\n")
    return sweep


def test_a_real_run(adlight, tiny_run):
    run, _ = tiny_run
    outcome = adlight("report", "runs=runs/tiny", "out=tiny_report", "title='a, b = (c)'", "reference=mae_mvtec")
    assert outcome.code == 0, outcome.err
    written = re.findall(r"^written: (.*)$", outcome.out, re.MULTILINE)
    assert written == [f"tiny_report/{name}" for name in ("results.csv", "results.md", "index.html")]
    assert sorted(path.name for path in (adlight.folder / "tiny_report").iterdir()) == sorted(
        name.rpartition("/")[2] for name in written
    )
    content = json.loads((run / "metrics.json").read_text())
    rows = {row["category"]: row for row in csv.DictReader((adlight.folder / written[0]).open())}
    assert list(rows) == ["bottle", "screw", "mean of 2", "pooled"]
    for name, table in [*content["categories"].items(), ("mean of 2", content), ("pooled", content["pooled"])]:
        for metric in ("auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro"):
            assert rows[name][metric] == repr(table[metric])
    assert rows["screw"]["model"] == "mae_small" and rows["screw"]["dataset"] == "mvtec"
    assert rows["screw"]["reference_auroc"] == "0.804" and rows["screw"]["seconds"] == repr(content["seconds"])
    page = (adlight.folder / written[2]).read_text()
    assert "<title>a, b = (c)</title>" in page and page.count('src="../runs/tiny/panels/') == 2
    assert page.count("data:image/svg+xml;base64,") == 4 and page.count("data:image/webp;base64,") == 18
    assert len(page) < 2e6 and "9 test images of bottle, not 83" in page  # no difference from the paper's number
    assert f"{content['auroc']:.3f}" in outcome.out


def test_a_sweep_with_failures(adlight, place):
    outcome = adlight("report", "runs=report_runs/sweep-1")
    assert outcome.code == 0, outcome.err
    assert "2 finished, 1 failed, 1 damaged" in outcome.out
    assert "2: failed. CUDA out of memory" in outcome.out
    assert re.search(r"3: damaged, because .*sweep-1/3/metrics.json is damaged", outcome.out)
    rows = list(csv.DictReader((place / "report" / "results.csv").open()))
    assert [row["status"] for row in rows] == ["finished"] * 8 + ["failed", "damaged"]
    again = adlight("report", "runs=report_runs/sweep-1", "detailed=0", "pictures=0")  # its own folder is no run
    assert again.code == 0 and "2 finished, 1 failed, 1 damaged" in again.out
    assert not list((place / "report").glob("*.part"))


def test_a_glob_and_a_list(adlight, place):
    outcome = adlight("report", "runs=report_runs/*/[01]", "detailed=0")
    assert outcome.code == 0 and "2 finished" in outcome.out
    assert re.search(r"^written: runs/report-\d{8}-\d{6}/index.html$", outcome.out, re.MULTILINE)
    words = ["runs=[report_runs/sweep-1/0,report_runs/sweep-1/1]", "out='a (b)'", "detailed=0"]
    outcome = adlight("report", *words)
    assert outcome.code == 0 and "written: a (b)/index.html" in outcome.out
    assert not (adlight.folder / ".hydra").exists() and not (adlight.folder / "report.log").exists()


def test_evaluations_are_compared_where_they_are_named(adlight, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations"))
    for reduce in ("max", "topk"):
        adlight.evaluate(run, f"model.scorer.reduce={reduce}", "callbacks.panels=null")
    outcome = adlight("report", f"runs={run / 'evaluations'}", "detailed=0")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((run / "evaluations" / "report" / "results.csv").open()))
    assert {row["config.model.scorer.reduce"] for row in rows} == {"max", "topk"} and len(rows) == 8
    assert adlight("report", f"runs={run}", "detailed=0").out.count("mean of 2") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "adlight report runs="),
        (["runs=nowhere"], "nowhere"),
        (["runs=report_runs/x*"], "report_runs/x*"),
        (["runs=data"], "data"),
        (["runs=bad.csv"], "bad.csv"),
        (["runs=report_runs", "reference=bad.csv"], "bad.csv has the columns a, b"),
        (["runs=report_runs", "reference=nowhere"], "nowhere"),
        (["runs=report_runs", "reference=mae_mvtec", "reference_column=x"], "'x': there are mkd, unet"),
        (["runs=report_runs", "out=bad.csv"], "out="),
        (["runs=report_runs", "tolerance=-1"], "tolerance"),
        (["runs=report_runs", "detailed=all"], "detailed"),
        (["runs=report_runs", "refrence=x"], "did you mean reference?"),
    ],
)
def test_mistakes(adlight, place, words, named):
    check_refused(adlight("report", *words), named)
