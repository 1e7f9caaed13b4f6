"""Drawings: the overlap, ROC points, axes and legends."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from adlight.reports import curves, figures

NAN = float("nan")


def predictions(label, score, threshold=NAN):
    return pd.DataFrame({"label": label, "score": np.asarray(score, float), "threshold": threshold})


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_overlap_by_hand():
    label = [0] * 4 + [1] * 4
    apart = np.array([0.0, 0.1, 0.2, 0.3, 9.7, 9.8, 9.9, 10.0])
    assert curves.measure_overlap(predictions(label, apart)) == 0
    assert curves.measure_overlap(predictions(label, np.tile(apart[:4], 2))) == 1
    score = [0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]  # in three bins: 1/4 3/4 0 and 0 1/4 3/4
    assert curves.measure_overlap(predictions(label, score), bins=3) == pytest.approx(0.25)
    assert curves.measure_overlap(predictions(label, np.ones(8))) == 1  # all the same
    assert curves.measure_overlap(predictions([0] * 8, apart)) is None


def test_ranking_curves_by_hand():
    cells = {"a": predictions([0, 1, 0, 1], [1, 2, 2, 3]), "one class": predictions([0], [1])}
    figure = curves.plot_ranking_curves(cells)
    roc, _ = figure.axes[0].lines
    assert roc.get_xydata().tolist() == [[0, 0], [0, 0.5], [0.5, 1], [1, 1]]  # equal scores are one step
    (recall,) = figure.axes[1].lines
    assert recall.get_xydata() == pytest.approx(np.array([[0, 1], [0.5, 1], [1, 2 / 3], [1, 0.5]]))
    ap = average_precision_score(cells["a"]["label"], cells["a"]["score"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"a 0.875, {ap:.3f}"]
    assert curves.plot_ranking_curves({"one class": predictions([0], [1])}) is None


def test_histograms_say_what_they_cannot_show():
    figure = curves.plot_histograms(
        {
            "normal only": predictions([0, 0, 0], [0, 1, 2], 9.0),
            "far threshold": predictions([0, 0, 1], [0, 1, 2], 9.0),
            "a $x$ <b>": predictions([0, 0, 1], [0, 1, 2]),
            "two thresholds": predictions([0, 0, 1], [0, 1, 2], [0.5, 0.5, 1.5]),
        }
    )
    assert titles(figure) == [
        "normal only:\none class only, threshold outside",
        "far threshold:\noverlap 0.00, threshold outside",
        "a $x$ <b>: overlap 0.00",
        "two thresholds: overlap 0.00",
    ]


def test_long_titles_are_broken():
    (title,) = titles(curves.plot_histograms({" ".join(["hazelnut"] * 10): predictions([0, 1], [0, 1])}))
    *mine, last = title.split("\n")
    assert len(mine) == 3 and max(map(len, mine)) <= curves.TITLE and last == "overlap 0.00"


def spreads(**series):
    rows = [
        {"series": name, "category": category, "value": value, "lower": value - spread, "upper": value + spread}
        for name, values in series.items()
        for category, (value, spread) in values.items()
    ]
    return pd.DataFrame(rows).assign(paper=NAN)


def test_a_legend_of_long_names_stays_on_its_figure():
    for length in (8, 40, 90):
        table = spreads(**{f"{i}" * length: {"bottle": (0.5, 0), "screw": (0.7, 0)} for i in range(6)})
        table.loc[table["category"] == "bottle", "paper"] = 0.6
        figure = figures.plot_bars({"AUROC": table})
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.width <= figure.bbox.width, length
        assert figure.axes[0].get_window_extent().height > 80  # and leaves room for the bars


def test_bars_do_not_hide_where_their_axis_starts():
    low = spreads(one={"a": (0.4, 0.1), "b": (0.9, 0)}, two={"a": (0.5, NAN)})
    (axes,) = figures.plot_bars({"AUROC": low}).axes
    assert axes.get_ylim()[0] == 0 and axes.get_ylabel() == "AUROC"
    heights = [bar.get_height() for container in axes.containers for bar in getattr(container, "patches", [])]
    assert sorted(height for height in heights if height == height) == [0.4, 0.5, 0.9]
    high = spreads(one={"a": (0.96, 0), "b": (0.99, 0)}).assign(paper=[0.95, NAN])
    (axes,) = figures.plot_bars({"F1": high}, as_bars=True).axes
    assert axes.get_ylim()[0] == pytest.approx(0.9) and axes.get_ylabel() == "F1\n(from 0.9)"
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["one", "paper"]


def test_heat_maps_show_every_number():
    ours = pd.DataFrame({"E2D2": [0.81, NAN], "E12D8": [NAN, 0.7]}, index=[0.5, 0.75])
    paper = pd.DataFrame({"E2D2": [0.8, 0.9]}, index=[0.5, 0.75])
    figure = figures.plot_heat_maps(ours, paper, 0.02)
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert shown == ["0.810", "-", "-", "0.700", "0.800", "-", "0.900", "-", "+0.010", "-", "-", "-"]
    assert titles(figure) == ["ours", "paper", "ours - paper"]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["E2D2", "E12D8"]
    alone = figures.plot_heat_maps(ours, pd.DataFrame(), 0.02)
    assert titles(alone) == ["ours"] and alone.axes[0].texts[0].get_text() == "0.810"
