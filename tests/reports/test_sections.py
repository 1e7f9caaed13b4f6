"""Which runs are drawn side by side, and pictures that fit into a page."""

import base64
import xml.etree.ElementTree as ElementTree

import pytest
from makers import fake_run, write_image

from adlight.reports import sections
from adlight.reports.collect import collect
from adlight.reports.reference import compare


def gathered(root):
    return compare(collect([str(root)]), None, None)


def texts(picture):
    """The words of a drawing, and the drawing."""
    kind, data = picture.source.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(data))
    return ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("}text")]


@pytest.mark.parametrize("encoders", [("separate", "joint"), ("separate",)])
def test_an_ablation_has_one_heat_map_per_encoder(tmp_path, encoders):
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


def test_bars_by_class_and_of_the_first_series(tmp_path):
    for digit in (3, 5):
        for z in range(7):
            words = {"model": "gan", "dataset": "mnist", "dataset__normal": digit, "experiment": "gan_mnist"}
            fake_run(tmp_path / f"{digit}-{z}", (str(digit),), draw=digit, model__z=z, **words)
    by_category, by_class = sections.draw_bars(gathered(tmp_path))
    assert {"z=0", "z=5"} <= set(texts(by_category)) and "z=6" not in texts(by_category)
    assert by_category.note.endswith("The first 6 of 7 series are drawn.")
    assert {"precision", "recall", "paper", "3", "5"} <= set(texts(by_class))


def test_panels_are_limited_in_number_size_and_sum(tmp_path, monkeypatch):
    for i in range(3):
        fake_run(tmp_path / str(i), ("a", "b", "c"))
    write_image(tmp_path / "0" / "panels" / "a.png", size=2000)
    (tmp_path / "1" / "panels" / "a.png").write_text("no picture")
    found = collect([str(tmp_path)])
    embedded, left = sections.embed_panels(found, 2, 2)
    titles = {name: [one.title for one in mine] for name, mine in embedded}
    assert titles == {"0": ["0: a", "0: b"], "1": ["1: b"]} and left == 6
    assert embedded[0][1][0].width == sections.WIDEST
    monkeypatch.setattr(sections, "MEGABYTES", 0.001)  # the first is larger: no room for another
    embedded, left = sections.embed_panels(found, 3, 3)
    assert [len(mine) for _, mine in embedded] == [1] and left == 8
