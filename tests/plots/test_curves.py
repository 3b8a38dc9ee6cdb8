"""What is drawn is what the data say, and data that make no figure are refused."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from plots import curves
from tests.plots.rows import metrics
from utils.errors import UserError


def axes():
    return Figure().add_subplot()


def legend_names(drawn):
    return drawn.get_legend_handles_labels()[1]


def data_of(line):
    return list(line.get_xdata()), list(line.get_ydata())


def test_precision_recall_plots_the_curves_as_given():
    named = {
        "A": [{"precision": [1.0, 0.5, 0.2], "recall": [0.1, 0.6, 1.0]}],
        "B": [{"precision": [0.7, 0.2], "recall": [0.4, 1.0]}],
    }
    drawn = axes()
    curves.draw_precision_recall(drawn, named)
    assert [data_of(line) for line in drawn.lines] == [
        ([0.1, 0.6, 1.0], [1.0, 0.5, 0.2]),
        ([0.4, 1.0], [0.7, 0.2]),
    ]
    assert legend_names(drawn) == ["A", "B"], "n is named only where a curve is a mean"
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("recall", "precision")


def test_precision_recall_of_several_seeds_is_their_mean_at_each_radius():
    seeds = [{"precision": [1.0, 0.5], "recall": [0.2, 1.0]}, {"precision": [0.6, 0.1], "recall": [0.4, 1.0]}]
    drawn = axes()
    curves.draw_precision_recall(drawn, {"A": seeds, "B": seeds[:1]})
    np.testing.assert_allclose(drawn.lines[0].get_xdata(), [0.3, 1.0])
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), [0.8, 0.3])
    assert legend_names(drawn) == ["A (n = 2)", "B (n = 1)"]


def test_precision_at_n_has_a_band_of_one_standard_deviation():
    seeds = [{"1": 0.9, "10": 0.6}, {"1": 0.7, "10": 0.6}]  # text keys, as JSON has them
    drawn = axes()
    curves.draw_at_cutoffs(drawn, {"A": seeds, "B": [{1: 0.5, 10: 0.4}]})
    assert list(drawn.lines[0].get_xdata()) == [1, 10] and drawn.get_xscale() == "log"
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), [0.8, 0.6])
    (band,) = drawn.collections  # none for the single seed
    std = np.std([0.9, 0.7], ddof=1)
    at_one = {round(y, 12) for x, y in band.get_paths()[0].vertices if x == 1}
    assert at_one == {round(0.8 - std, 12), round(0.8 + std, 12)}


def test_map_by_iteration_is_the_mean_over_seeds():
    drawn = axes()
    curves.draw_map_by_iteration(drawn, {"A": [{5: 0.4, 10: 0.6}, {5: 0.2, 10: 0.8}]}, "mAP, learned codes")
    assert list(drawn.lines[0].get_xdata()) == [5, 10] and drawn.get_xscale() == "linear"
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), [0.3, 0.7])
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("iteration", "mAP, learned codes")


def test_curves_that_have_no_mean_are_refused():
    with pytest.raises(UserError, match="A: the curves have different lengths"):
        curves.draw_precision_recall(
            axes(), {"A": [{"precision": [1, 0], "recall": [0, 1]}, {"precision": [1], "recall": [1]}]}
        )
    with pytest.raises(UserError, match="A: the runs have different N"):
        curves.draw_at_cutoffs(axes(), {"A": [{1: 0.5, 2: 0.5}, {1: 0.5, 5: 0.5}]})
    with pytest.raises(UserError, match="A: the runs have different evaluations"):
        curves.draw_map_by_iteration(axes(), {"A": [{5: 0.5, 10: 0.5}, {4: 0.5, 8: 0.5}]})
    with pytest.raises(UserError, match="no precision-recall curves"):
        curves.draw_precision_recall(axes(), {})
    with pytest.raises(UserError, match="no mAP to draw"):
        curves.draw_map_by_code_length(axes(), {"A": {}})


def test_map_by_code_length_is_mean_and_sample_std_with_n_in_the_legend():
    series = {"A": {32: [0.8, 0.9, 0.7], 12: [0.5, 0.7]}, "B": {12: [0.4], 32: [0.6]}}
    drawn = axes()
    curves.draw_map_by_code_length(drawn, series)
    bars = [container for container in drawn.containers if isinstance(container, ErrorbarContainer)]
    assert data_of(bars[0].lines[0]) == ([12, 32], [pytest.approx(0.6), pytest.approx(0.8)])
    (segments,) = bars[0].lines[2]
    heights = [abs(end[1] - start[1]) / 2 for start, end in segments.get_segments()]
    assert heights == pytest.approx([np.sqrt(0.02), 0.1])
    assert data_of(bars[1].lines[0]) == ([12, 32], [0.4, 0.6]) and not bars[1].has_yerr
    assert legend_names(drawn) == ["A (n = 2–3)", "B (n = 1)"]
    assert list(drawn.get_xticks()) == [12, 32]
    low, high = drawn.get_ylim()
    assert low < 0.4 and high > 0.9, "the bars lie inside the axes"


def test_losses_by_part():
    codes, others = axes(), axes()
    curves.draw_losses(codes, metrics(), of_codes=True)
    curves.draw_losses(others, metrics(), of_codes=False)
    assert legend_names(codes) == ["image", "latent"] and legend_names(others) == ["image_rec"]
    assert data_of(codes.lines[0]) == ([1, 2, 3, 4], [39.0, 38.0, 37.0, 36.0])
    assert data_of(others.lines[0]) == ([1, 2, 3, 4], [0.1, 0.01, 0.001, 0.0001])
    assert (codes.get_yscale(), others.get_yscale()) == ("linear", "log")
    zero = [row | {"loss": {"image_rec": 0.0}} for row in metrics()]
    drawn = axes()
    curves.draw_losses(drawn, zero, of_codes=False)
    assert drawn.get_yscale() == "linear", "a logarithm would hide the zeros"
    drawn = axes()
    curves.draw_losses(drawn, metrics(2), of_codes=False)
    assert drawn.get_yscale() == "linear", "a logarithmic axis of one decade has hardly a number on it"


def test_map_bit_balance_and_distinct_codes():
    drawn = axes()
    curves.draw_map(drawn, metrics())
    assert data_of(drawn.lines[0]) == ([2, 4], [0.4, 0.8])
    assert drawn.get_legend() is None
    low, high = drawn.get_xlim()
    assert low <= 1 and high >= 4, "the axis covers the iterations without an evaluation"

    drawn = axes()
    curves.draw_map(drawn, [row | ({"validation_map": 0.1} if "map" in row else {}) for row in metrics()])
    assert data_of(drawn.lines[1]) == ([2, 4], [0.1, 0.1])
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["queries", "held out"]

    drawn = axes()
    curves.draw_bit_balance(drawn, metrics())
    assert len(drawn.lines) == 3 + 1
    np.testing.assert_allclose([line.get_ydata() for line in drawn.lines[:3]], [
        [0.1, 0.2, 0.3, 0.4], [-0.2] * 4, [0.0] * 4,
    ])  # fmt: skip
    np.testing.assert_allclose(drawn.lines[3].get_ydata(), [0.3 / 3, 0.4 / 3, 0.5 / 3, 0.6 / 3])

    drawn = axes()
    curves.draw_distinct(drawn, metrics())
    assert data_of(drawn.lines[0])[1] == [row["distinct"] for row in metrics()]


def test_a_log_without_evaluation_says_so():
    drawn = axes()
    curves.draw_map(drawn, metrics(evaluated=()))
    assert [text.get_text() for text in drawn.texts] == ["not evaluated yet"] and not drawn.lines


def test_training_curves_need_two_iterations(tmp_path):
    with pytest.raises(UserError, match=r"1 iteration\(s\) make no curve"):
        curves.training_figure(tmp_path / "training.png", metrics(1))
    assert not list(tmp_path.iterdir())
    curves.training_figure(tmp_path / "training.png", metrics(2))
    assert Image.open(tmp_path / "training.png").size == (2100, 1320)


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_legends_lie_within_the_figure(parts, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(curves, "save", lambda figure, path: kept.append(figure) or path)
    names = ["image_rec", "label_rec", "discriminator", "generator", "another"][:parts]
    rows = [row | {"loss": dict.fromkeys(["image", *names], 0.5)} for row in metrics()]
    curves.training_figure(tmp_path / "training.png", rows)
    names = [f"MM Asia, a_setting {number}" for number in range(parts)]
    curves.map_figure(tmp_path / "map.png", {name: {12: [0.5, 0.6]} for name in names})
    for figure in kept:
        figure.draw_without_rendering()
        legends = [*figure.legends, *(drawn.get_legend() for drawn in figure.axes)]
        boxes = [legend.get_window_extent() for legend in legends if legend is not None]
        assert boxes and all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_method_without_the_losses_of_codes_has_one_panel_of_losses(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(curves, "save", lambda figure, path: kept.append(figure) or path)
    rows = [row | {"loss": {"pairs": 1.0, "quantisation": 0.5}} for row in metrics()]
    curves.training_figure(tmp_path / "training.png", rows, codes="network's codes")
    labels = [drawn.get_ylabel() for drawn in kept[0].axes]
    assert labels == ["other losses", "mAP, network's codes", "mean of a bit (0: balanced)", "share of distinct codes"]
    curves.training_figure(tmp_path / "training.png", metrics())
    assert [drawn.get_ylabel() for drawn in kept[1].axes[:3]] == ["loss f(U)", "other losses", "mAP, learned codes"]
