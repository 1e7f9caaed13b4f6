"""Published tables: their shapes, and which number stands beside which row."""

import pytest
from makers import fake_run

from adlight.reports import reference
from adlight.reports.collect import collect
from adlight.types import UserError


def table(tmp_path, text):
    path = tmp_path / "paper.csv"
    path.write_text(text)
    return path


def run(tmp_path, *words, **settings):
    return collect([str(fake_run(tmp_path / "run", *words, **settings))])[0]


def test_methods_by_category(tmp_path):
    path = table(tmp_path, "category,old,new\nbottle,0.5,0.9\nscrew,0.6,0.8\nzipper,0.1,0.1\n")
    found, one = reference.read(path), run(tmp_path)
    assert found.column == "new"  # the last is the paper's own
    values = {row.category: found.value(one, row, "auroc") for row in one.rows}
    assert values == {"bottle": 0.9, "screw": 0.8, "mean of 2": pytest.approx(0.85), "pooled": None}
    assert found.value(one, one.rows[0], "f1_max") is None
    assert reference.read(path, "old").value(one, one.rows[0], "auroc") == 0.5


def test_a_mean_needs_all_its_categories(tmp_path):
    found, one = reference.read(table(tmp_path, "category,new\nbottle,0.9\nmean,0.7\n")), run(tmp_path)
    assert found.value(one, one.headline, "auroc") is None


def test_percent_by_digit(tmp_path):
    path = table(tmp_path, "normal_digit,precision,recall,f1\n0,99.94,99.18,99.56\nmean,99.89,97.65,98.76\n")
    found, one = reference.read(path), run(tmp_path, ("0",), dataset__normal=0)
    values = [found.value(one, one.rows[0], name) for name in ("precision_at_f1_max", "recall_at_f1_max", "f1_max")]
    assert values == pytest.approx([0.9994, 0.9918, 0.9956])
    assert found.value(one, one.rows[0], "auroc") is None


def test_columns_that_end_in_a_metric(tmp_path):
    path = table(tmp_path, "normal_digit,knn3_auroc,knn3_f1_max\n0,0.99,0.98\n")
    assert reference.read(path, "knn3_auroc").classes == {"auroc": {"0": 0.99}}
    assert reference.read(path).classes == {"f1_max": {"0": 0.98}}
    assert reference.metric_of("pixel_auroc") == "pixel_auroc" and reference.metric_of("multimask_mae") == "auroc"


def test_an_ablation(tmp_path):
    found = reference.read(table(tmp_path, "mask_ratio,E2D2,E2D4\n0.50,0.829,\n0.75,0.832,0.895\n"))
    assert found.cells == {(0.5, "E2D2"): 0.829, (0.75, "E2D2"): 0.832, (0.75, "E2D4"): 0.895}
    one = run(tmp_path)  # 0.75, E2D4
    assert reference.cell(one) == (0.75, "E2D4")
    values = {row.category: found.value(one, row, "auroc") for row in one.rows}
    assert values == {"bottle": None, "screw": None, "mean of 2": 0.895, "pooled": None}
    one.settings["model.network.encoder_depth"] = "${other}"
    assert reference.cell(one) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", r"has the columns a, b: wanted is a column 'category'"),
        ("category\nbottle\n", r"has the columns category: wanted"),
        ("mask_ratio,depth\n0.5,3\n", r"has the columns mask_ratio, depth: wanted"),
        ("category,x\n", r"has the columns category, x: wanted"),
        ("", r"has the columns none: wanted"),
        ("category,x\nbottle,high\n", r"'high' in column 'x' of row 'bottle' is no number"),
        ("category,x\na,1\na,2\n", r"several rows for the same category"),
    ],
)
def test_tables_of_no_known_shape(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        reference.read(table(tmp_path, text))


def test_missing_files_and_columns(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.csv cannot be read: No such file"):
        reference.read(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"no column 'z': there are x, y"):
        reference.read(table(tmp_path, "category,x,y\na,1,2\n"), "z")


def test_a_run_is_beside_what_its_experiment_expects(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "EXPERIMENTS", tmp_path / "experiments")
    (tmp_path / "experiments" / "paper_a").mkdir(parents=True)
    expected = tmp_path / "experiments" / "paper_a" / "expected.csv"
    expected.write_text("category,x\nbottle,0.5\n")
    fake_run(tmp_path / "runs" / "0", finished=False, experiment="paper_a")
    fake_run(tmp_path / "runs" / "1", finished=False, sweep="paper_a", experiment="another")
    fake_run(tmp_path / "runs" / "2", finished=False, experiment="unknown")
    fake_run(tmp_path / "runs" / "3", finished=False)
    found = collect([str(tmp_path / "runs")])
    tables = reference.find(None, found, None)
    assert [[one.path for one in tables[i]] for i in range(4)] == [[expected], [expected], [], []]
    assert reference.find([], found, None) == {i: [] for i in range(4)}  # reference=none
    assert reference.find(["paper_a"], found, None)[3][0].shown.as_posix() == "experiments/paper_a/expected.csv"


def test_a_sweep_is_beside_the_experiment_of_its_model(tmp_path):
    digit = {"sweep": "digits", "dataset": "mnist", "dataset__normal": 3}
    category = {"sweep": "categories", "dataset": "mvtec"}
    words = [
        ({**digit, "model": "gan"}, ["gan_mnist"]),
        ({**digit, "model": "gan", "experiment": "gan_mnist"}, ["gan_mnist"]),  # once
        ({**digit, "model": "knn"}, []),
        ({**digit, "model": "gan", "dataset": "cifar10"}, []),
        ({**category, "model": "mae", "dataset__category": "all"}, ["mae_mvtec"]),
        ({**category, "model": "mae", "dataset__category": "screw"}, ["mae_mvtec"]),
        ({**category, "model": "mae", "dataset__category": ["screw", "bottle"]}, []),  # the article has no such model
        ({**category, "model": "mae_small", "dataset__category": "all"}, []),
    ]
    for i, (settings, _) in enumerate(words):
        fake_run(tmp_path / str(i), finished=False, **settings)
    tables = reference.find(None, collect([str(tmp_path)]), None)
    assert [[one.path.parent.name for one in tables[i]] for i in range(len(words))] == [named for _, named in words]


def test_the_projects_own_tables_can_be_read():
    cells = reference.read(reference.path_of("mae_ablation")).cells
    assert len(cells) == 24 and max(cells.values()) == cells[0.75, "E2D4"] == 0.895
    assert reference.read(reference.path_of("gan_mnist")).classes["f1_max"]["mean"] == pytest.approx(0.9876)
    assert reference.read(reference.path_of("mae_mvtec")).classes["auroc"]["mean"] == 0.895
