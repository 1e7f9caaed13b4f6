"""Drawings: the overlap, ROC points, and SVG that fits into a page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from adlight.reports import plots
from adlight.reports.plots import Scored, Spread


def test_overlap_by_hand():
    label = np.array([0] * 4 + [1] * 4)
    apart = np.array([0.0, 0.1, 0.2, 0.3, 9.7, 9.8, 9.9, 10.0])
    assert plots.overlap(apart, label) == 0
    assert plots.overlap(np.tile(apart[:4], 2), label) == 1
    score = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0])  # in three bins: 1/4 3/4 0 and 0 1/4 3/4
    assert plots.overlap(score, label, bins=3) == pytest.approx(0.25)
    assert plots.overlap(np.ones(8), label) == 1  # all the same
    assert plots.overlap(apart, np.zeros(8, int)) is None


def texts(svg):
    return ["".join(found.itertext()) for found in ElementTree.fromstring(svg).iter() if found.tag.endswith("}text")]


def test_an_svg_fits_into_a_page():
    cells = [Scored("a $x$ & <b>", np.array([0, 1]), np.array([0.0, 1.0]), 0.5, 1.0)]
    first, second = (plots.svg(plots.histograms(cells), name, 'a "b" <c> & d') for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, known in ((first, ids[0]), (second, ids[1])):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(one, "") for one in known} | {
            ("", one) for one in known
        }
        assert plots.INK not in svg and "currentColor" in svg and "<style" not in svg and "<?xml" not in svg
        assert ElementTree.fromstring(svg).attrib["aria-label"] == "a 'b' (c> and d"
        assert "a $x$ & <b>: overlap 0.00" in texts(svg)


def test_histograms_say_what_they_cannot_show():
    score = np.array([0.0, 1.0, 2.0])
    cells = [
        Scored("normal only", np.zeros(3, int), score, 9.0, None),
        Scored("far threshold", np.array([0, 0, 1]), score, 9.0, None),
        Scored("none", np.array([0, 0, 1]), score, None, None),
    ]
    shown = texts(plots.svg(plots.histograms(cells), "x", ""))
    assert "one class only, threshold outside" in shown and "normal only:" in shown
    assert "overlap 0.00, threshold outside" in shown and "far threshold:" in shown and "none: overlap 0.00" in shown
    assert plots.roc_curves(cells[:1]) is None
    assert plots.roc_curves(cells) is not None


def test_long_titles_are_broken():
    cells = [Scored(" ".join(["hazelnut"] * 10), np.array([0, 1]), np.array([0.0, 1.0]), None, None)]
    lines = texts(plots.svg(plots.histograms(cells), "x", ""))
    mine = [line for line in lines if "hazelnut" in line]
    assert len(mine) == 3 and max(map(len, mine)) <= plots.TITLE and "overlap 0.00" in lines


def test_a_legend_of_long_names_stays_on_its_figure():
    for length in (8, 40, 90):
        panel = {f"{i}" * length: {"bottle": Spread(0.5), "screw": Spread(0.7)} for i in range(6)}
        figure = plots.bars(["bottle", "screw"], {"AUROC": panel}, {"AUROC": {"bottle": 0.6}})
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.width <= figure.bbox.width, length
        assert figure.axes[0].get_window_extent().height > 80  # and leaves room for the bars


def test_heat_maps_show_every_number():
    ours, paper = {(0.5, "E2D2"): 0.81, (0.75, "E12D8"): 0.7}, {(0.5, "E2D2"): 0.8, (0.75, "E2D2"): 0.9}
    shown = texts(plots.svg(plots.heat_maps(ours, paper, 0.02), "x", ""))
    assert {"0.810", "0.700", "0.800", "0.900", "+0.010", "-", "ours", "paper", "ours - paper"} <= set(shown)
    assert shown.count("E2D2") == 3 and shown.index("E2D2") < shown.index("E12D8")
    alone = texts(plots.svg(plots.heat_maps(ours, {}, 0.02), "x", ""))
    assert "paper" not in alone and "0.810" in alone


def test_bars_do_not_hide_where_their_axis_starts():
    low = {"AUROC": {"one": {"a": Spread(0.4, 0.1, 0.1), "b": Spread(0.9)}, "two": {"a": Spread(0.5)}}}
    (axes,) = plots.bars(["a", "b"], low, {"AUROC": {"a": 0.7}}).axes
    assert axes.get_ylim()[0] == 0 and axes.get_ylabel() == "AUROC"
    heights = [bar.get_height() for container in axes.containers for bar in getattr(container, "patches", [])]
    assert sorted(height for height in heights if height == height) == [0.4, 0.5, 0.9]
    high = {"F1": {"one": {"a": Spread(0.96), "b": Spread(0.99)}}}
    (axes,) = plots.bars(["a", "b"], high, {"F1": {"a": 0.95}}, as_bars=True).axes
    assert axes.get_ylim()[0] == pytest.approx(0.9) and axes.get_ylabel() == "F1\n(from 0.9)"
