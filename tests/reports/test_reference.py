"""Published tables: their shapes, and which number stands beside which row."""

import math

import pytest
from makers import fake_run

from adlight.reports import protocol, reference
from adlight.reports.collect import collect
from adlight.types import UserError


def table(tmp_path, text):
    path = tmp_path / "paper.csv"
    path.write_text(text)
    return path


def references(tmp_path, text, metric="auroc", column=None, categories=("bottle", "screw")):
    """The published number beside each row of a run."""
    if not (tmp_path / "run").exists():
        fake_run(tmp_path / "run", categories)
    found = reference.compare(collect([str(tmp_path / "run")]), [str(table(tmp_path, text))], column)
    values = found.results.set_index("category").get(f"reference_{metric}")
    return None if values is None else {name: value for name, value in values.items() if not math.isnan(value)}


def test_methods_by_category(tmp_path):
    text = "category,old,new\nbottle,0.5,0.9\nscrew,0.6,0.8\nzipper,0.1,0.1\n"
    assert references(tmp_path, text) == {"bottle": 0.9, "screw": 0.8, "mean of 2": pytest.approx(0.85)}  # the last
    assert references(tmp_path, text, column="old")["bottle"] == 0.5
    assert references(tmp_path, text, "f1_max") is None
    sources = reference.read_table(table(tmp_path, text))["source"].unique()
    assert sources == [f"{tmp_path / 'paper.csv'} (new)"]


def test_a_mean_needs_all_its_categories(tmp_path):
    assert references(tmp_path, "category,new\nbottle,0.9\nmean,0.7\n") == {"bottle": 0.9}


def test_the_first_of_two_tables_counts(tmp_path):
    fake_run(tmp_path / "run")
    (tmp_path / "a.csv").write_text("category,auroc\nbottle,0.5\n")
    (tmp_path / "b.csv").write_text("category,auroc\nbottle,0.6\nscrew,0.7\n")
    named = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    results = reference.compare(collect([str(tmp_path / "run")]), named, None).results
    assert results.set_index("category")["reference_auroc"].dropna().to_dict() == {
        "bottle": 0.5,
        "screw": 0.7,
        "mean of 2": pytest.approx(0.6),
    }


def test_percent_by_digit(tmp_path):
    text = "normal_digit,precision,recall,f1\n0,99.94,99.18,99.56\nmean,99.89,97.65,98.76\n"
    for metric, value in (("precision_at_f1_max", 0.9994), ("recall_at_f1_max", 0.9918), ("f1_max", 0.9956)):
        assert references(tmp_path, text, metric, categories=("0",)) == {"0": pytest.approx(value)}
    assert references(tmp_path, text, "auroc") is None


def test_columns_that_end_in_a_metric(tmp_path):
    path = table(tmp_path, "normal_digit,knn3_auroc,knn3_f1_max\n0,0.99,0.98\n")
    assert reference.read_table(path, "knn3_auroc")[["metric", "category", "value"]].to_numpy().tolist() == [
        ["auroc", "0", 0.99]
    ]
    assert reference.read_table(path)["metric"].tolist() == ["f1_max"]
    assert reference.parse_metric("pixel_auroc") == "pixel_auroc" and reference.parse_metric("multimask_mae") == "auroc"


def test_an_ablation(tmp_path):
    text = "mask_ratio,E2D2,E2D4\n0.50,0.829,\n0.75,0.832,0.895\n"
    cells = reference.read_table(table(tmp_path, text))
    assert cells[["mask_ratio", "depth", "value"]].to_numpy().tolist() == [
        [0.5, "E2D2", 0.829],
        [0.75, "E2D2", 0.832],
        [0.75, "E2D4", 0.895],
    ]
    assert references(tmp_path, text) == {"mean of 2": 0.895}  # the run's 0.75, E2D4; a cell's number is a mean
    results = collect([str(tmp_path / "run")]).results
    assert reference.locate_cells(results).to_numpy().tolist()[0] == [0.75, "E2D4"]
    results["config.model.network.encoder_depth"] = "${other}"
    assert reference.locate_cells(results).isna().all(axis=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "the columns a, b:"),
        ("category\nbottle\n", "the columns category:"),
        ("mask_ratio,depth\n0.5,3\n", "the columns mask_ratio, depth:"),
        ("category,x\n", "the columns category, x:"),
        ("", "the columns none:"),
        ("category,x\nbottle,high\n", "'high' in column 'x' of row 'bottle'"),
        ("mask_ratio,E2D2\nhalf,0.5\n", "'half' in column 'mask_ratio' of row 'half'"),
        ("category,x\na,1\na,2\n", "rows for the same category"),
    ],
)
def test_tables_of_no_known_shape(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        reference.read_table(table(tmp_path, text))
    assert said in str(error.value) and "paper.csv" in str(error.value)


def test_missing_files_and_columns(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        reference.read_table(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"'z'.*x, y"):
        reference.read_table(table(tmp_path, "category,x,y\na,1\n"), "z")


def sources(root, named=None):
    """The experiments that each run is compared with."""
    found = reference.compare(collect([str(root)]), named, None)
    of = {name: list(dict.fromkeys(mine["source"])) for name, mine in found.published.groupby("name")}
    return [[source.split("/")[1] for source in of.get(name, [])] for name in found.headlines["name"]]


def test_a_run_is_beside_what_its_experiment_expects(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "EXPERIMENTS", tmp_path / "experiments")
    for name, text in (("paper_a", "category,x\nbottle,0.5\n"), ("other_shape", "a,b\n1,2\n")):
        (tmp_path / "experiments" / name).mkdir(parents=True)
        (tmp_path / "experiments" / name / "expected.csv").write_text(text)
    fake_run(tmp_path / "runs" / "0", finished=False, experiment="paper_a")
    fake_run(tmp_path / "runs" / "1", finished=False, sweep="paper_a", experiment="another")
    fake_run(tmp_path / "runs" / "2", finished=False, experiment="unknown")
    fake_run(tmp_path / "runs" / "3", finished=False)
    fake_run(tmp_path / "runs" / "4", finished=False, experiment="other_shape")
    assert sources(tmp_path / "runs") == [["paper_a"], ["paper_a"], [], [], []]
    assert sources(tmp_path / "runs", []) == [[]] * 5  # reference=none
    assert sources(tmp_path / "runs", ["paper_a"]) == [["paper_a"]] * 5
    with pytest.raises(UserError, match="x"):  # a column that was asked for must be there
        reference.compare(collect([str(tmp_path / "runs")]), None, "y")


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
    assert sources(tmp_path) == [named for _, named in words]


def test_the_projects_own_tables_can_be_read():
    cells = reference.read_table(reference.find_table("mae_ablation"))
    best = cells.loc[cells["value"].idxmax()]
    assert len(cells) == 24 and (best["mask_ratio"], best["depth"], best["value"]) == (0.75, "E2D4", 0.895)
    for name, metric, mean in (("gan_mnist", "f1_max", 0.9876), ("mae_mvtec", "auroc", 0.895)):
        table = reference.read_table(reference.find_table(name)).set_index(["metric", "category"])["value"]
        assert table[metric, "mean"] == pytest.approx(mean)


def test_numbers_about_other_images_are_of_another_protocol(tmp_path):
    words = [
        ({"experiment": "mae_mvtec"}, "20 test images of bottle, not 83"),
        ({"experiment": "mae_mvtec", "dataset__test_limit": 20}, "test_limit 20"),
        ({"experiment": "mae_mvtec", "dataset": "folder"}, "dataset folder"),
        ({"sweep": "mae_ablation"}, "2 of 15 categories"),
        (
            {"experiment": "gan_mvtec", "dataset__test_limit": 100, "dataset__train_limit": 100},
            "",
        ),  # the paper's limits
    ]
    for i, (settings, _) in enumerate(words):
        fake_run(tmp_path / str(i), **settings)
    found = reference.compare(collect([str(tmp_path)]), None, None)
    said = found.published.groupby("name")["protocol"].first().to_dict()
    assert said == {str(i): text for i, (_, text) in enumerate(words) if str(i) in said} and len(said) >= 4
    rows = found.results.set_index(["name", "category"])["reference_protocol"]
    assert rows["0", "bottle"] == rows["0", "mean of 2"] == words[0][1] and rows["0", "pooled"] == ""
    own = reference.compare(collect([str(tmp_path / "0")]), [str(table(tmp_path, "category,x\nbottle,0.9\n"))], None)
    assert set(own.published["protocol"]) == {""}  # the user says what it is about


def test_test_images_are_those_of_the_data_sets():
    assert len(protocol.TEST_IMAGES["mvtec"]) == 15 and sum(protocol.TEST_IMAGES["mvtec"].values()) == 1725
    assert set(protocol.PROTOCOLS) == {path.parent.name for path in reference.EXPERIMENTS.glob("*/expected.csv")}
