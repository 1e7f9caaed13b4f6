"""Which runs are drawn side by side, and pictures that fit into a page."""

import base64
import json
import xml.etree.ElementTree as ElementTree

import pytest
from makers import fake_run, write_image

from adlight.reports import sections
from adlight.reports.collect import collect
from adlight.reports.reference import compare

NUMBERS = "metrics.json"


def gathered(root):
    return compare(collect([str(root)]), None, None)


def texts(picture):
    """The words of a drawing, and the drawing."""
    kind, data = picture.source.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(data))
    return ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("}text")]


@pytest.mark.parametrize("encoders", [("separate", "joint"), ("separate",)])
def test_an_ablation_has_one_heat_map_per_encoder(tmp_path, encoders, published_sets_are_small):
    for encoder in encoders:
        for ratio in (0.5, 0.75):
            words = {"model__mask_ratio": ratio, "model__network__encoder": encoder, "sweep": "mae_ablation"}
            fake_run(tmp_path / f"{encoder}{ratio}", **words)
    found = gathered(tmp_path)
    drawn = sections.draw_ablations(found, 0.02)
    assert [one.title for one in drawn] == (["encoder=joint", "encoder=separate"] if encoders[1:] else ["mae"])
    assert all(one.note.startswith("2 cells.") for one in drawn)
    assert {"E2D2", "E2D4", "0.895", "ours - paper"} <= set(texts(drawn[0]))  # the article's whole table
    (bars,) = sections.draw_bars(found)
    assert "paper" not in texts(bars)  # a cell's number is not a category's


def test_runs_without_an_ablation_or_results(tmp_path):
    fake_run(tmp_path / "0", ("x",), finished=False)
    fake_run(tmp_path / "1", ("x",))
    found = gathered(tmp_path)
    assert sections.draw_ablations(found, 0.02) == sections.draw_bars(found) == []
    assert sections.draw_bars(gathered(tmp_path / "0")) == sections.draw_ablations(gathered(tmp_path / "0"), 0.02) == []


def test_bars_by_class_and_of_the_first_series(tmp_path, published_sets_are_small):
    for digit in (3, 5):
        for z in range(7):
            words = {"model": "gan", "dataset": "mnist", "dataset__normal": digit, "experiment": "gan_mnist"}
            fake_run(tmp_path / f"{digit}-{z}", (str(digit),), draw=digit, model__z=z, **words)
    by_category, by_class = sections.draw_bars(gathered(tmp_path))
    assert {"z=0", "z=5"} <= set(texts(by_category)) and "z=6" not in texts(by_category)
    assert by_category.note.endswith("The first 6 of 7 series are drawn.")
    assert {"precision", "recall", "paper", "3", "5"} <= set(texts(by_class))


def test_a_cell_is_chosen_by_validation(tmp_path):
    limited = {"sweep": "mae_ablation", "dataset__test_limit": 10}
    for ratio, validation in ((0.5, 0.9), (0.75, 0.7)):
        path = fake_run(tmp_path / f"{ratio}", model__mask_ratio=ratio, shift=ratio * 4, **limited) / NUMBERS
        path.write_text(json.dumps(json.loads(path.read_text()) | {"validation": {"val/auroc": validation}}))
    found = gathered(tmp_path)
    (drawn,) = sections.draw_ablations(found, 0.02)
    runs = found.headlines.set_index("config.model.mask_ratio")["auroc"]
    assert runs["0.75"] > runs["0.5"]  # higher on the test, which chooses nothing
    assert f"val/auroc chooses ratio 0.5, E2D4: 0.900, and AUROC {runs['0.5']:.3f} on the test" in drawn.note
    assert "another protocol" in drawn.note and "test_limit 10" in drawn.note
    assert "paper (another protocol)" in texts(drawn) and "ours - paper" not in texts(drawn)


def test_learning_curves_have_a_panel_per_metric_and_a_drawing_per_stage(tmp_path):
    for i in range(3):
        run = fake_run(tmp_path / str(i))
        (run / "metrics.csv").write_text(f"epoch,step,train/loss,val/auroc\n0,3,{i}.5,\n1,7,{i}.25,0.{i + 1}\n")
    (run / "pretraining.csv").write_text("epoch,step,train/critic\n0,3,1.5\n")
    (tmp_path / "0" / "metrics.csv").write_text("epoch,train/loss\n0,low\n")
    first, last = sections.draw_learning(gathered(tmp_path), 8)
    assert {"train/loss", "val/auroc", "1", "2"} <= set(texts(first)) and "step" not in texts(first)
    assert "train/critic" in texts(last)
    (only,) = sections.draw_learning(gathered(tmp_path / "1"), 8)
    assert "train/loss" in texts(only)


def test_panels_are_linked_and_limited_in_number(tmp_path):
    for i in range(3):
        fake_run(tmp_path / f"run {i}", ("a", "b", "c"))
    write_image(tmp_path / "run 0" / "panels" / "a.png", size=2000)
    (tmp_path / "run 1" / "panels" / "a.png").write_text("no picture")
    linked, left = sections.link_panels(collect([str(tmp_path)]), 2, 2, tmp_path / "report")
    places = {name: [one.source for one in mine] for name, mine in linked}
    assert places == {
        "run 0": ["../run%200/panels/a.png", "../run%200/panels/b.png"],
        "run 1": ["../run%201/panels/b.png"],
    }
    assert left == 6 and linked[0][1][0].width == sections.WIDEST
