"""Curves from plain data (docs/figures.md): `draw_*` draw on given axes, `*_figure` write a file of one figure.

All raise a UserError where there is nothing to draw, or where the curves of one name have different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from plots.style import (
    BLACK,
    COLUMN_WIDTH,
    GREY,
    PAGE_WIDTH,
    fit_share_axis,
    house_style,
    legend_above,
    legend_below,
    new_figure,
    save,
    series_style,
)
from utils.errors import UserError

Rows = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Sequence[Mapping[Any, Any]]]
Series = Mapping[str, Mapping[int, Sequence[float]]]

_CODE_LOSSES = ("image", "label", "latent")  # the parts f(U) of docs/method.md


def draw_precision_recall(axes: Axes, curves: Curves) -> None:
    """Precision against recall within Hamming radius 0, 1, …, K; one line for each name.

    Args:
        curves: by name, one {"precision": [K+1], "recall": [K+1]} for each seed. The line is their mean at each radius;
            the legend gives their number if a name has several.
    """
    _require(curves, "precision-recall curves")
    for index, (name, seeds) in enumerate(curves.items()):
        recall, precision = (_stacked(name, [seed[key] for seed in seeds]) for key in ("recall", "precision"))
        axes.plot(
            recall.mean(axis=0), precision.mean(axis=0), label=_counted(name, len(seeds), curves),
            markevery=(0.03 * index, 0.14), clip_on=False, zorder=3, **series_style(index),
        )  # fmt: skip
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))


def draw_at_cutoffs(axes: Axes, curves: Curves, ylabel: str = "precision@N") -> None:
    """A metric of the first N items against N, on a logarithmic axis; one line for each name.

    Args:
        curves: by name, one {N: value} for each seed (N may be text, as in JSON). The line is their mean; with two or
            more seeds, a band shows ± their sample standard deviation.
    """
    _require(curves, f"values of {ylabel}")
    drawn = _draw_means(axes, curves, "N; compare runs with databases of the same size")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="N, items from the top of the list", ylabel=ylabel)
    fit_share_axis(axes, drawn)


def draw_map_by_iteration(axes: Axes, curves: Curves, ylabel: str = "mAP") -> None:
    """mAP against the iteration. `curves`: by name, {iteration: mAP} of each seed; drawn as in `draw_at_cutoffs`."""
    _require(curves, "evaluations")
    drawn = _draw_means(axes, curves, "evaluations; compare runs with the same --eval-iter and --max-iter")
    axes.set_ylabel(ylabel)
    _iterations(axes)
    fit_share_axis(axes, drawn)


def draw_map_by_code_length(axes: Axes, series: Series, ylabel: str = "mAP") -> None:
    """Mean mAP against code length, bars of ± the sample standard deviation over seeds; one line for each name.

    Args:
        series: by name and code length, one mAP for each seed; a single seed has no bar. The legend gives their number.
    """
    _require(series, "mAP")
    figure = axes.get_figure()
    assert figure is not None
    drawn: list[float] = []
    for index, (name, by_length) in enumerate(series.items()):
        lengths = sorted(by_length)
        mean = np.array([np.mean(by_length[bits]) for bits in lengths])
        spread = np.array([np.std(by_length[bits], ddof=1) if len(by_length[bits]) > 1 else 0.0 for bits in lengths])
        # Equal values would hide each other: each series is shifted by a few points on the page, not in its data.
        shift = ScaledTranslation((index - (len(series) - 1) / 2) * 3 / 72, 0, figure.dpi_scale_trans)
        numbers = sorted({len(values) for values in by_length.values()})
        count = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
        axes.errorbar(
            lengths,
            mean,
            yerr=spread if numbers[-1] > 1 else None,
            label=f"{name} (n = {count})",
            capsize=2.5,
            elinewidth=0.9,
            transform=axes.transData + shift,
            **series_style(index),
        )
        drawn += [*(mean - spread), *(mean + spread)]
    ticks = sorted({bits for by_length in series.values() for bits in by_length})
    axes.set_xticks(ticks)
    room = max(2.0, 0.06 * (ticks[-1] - ticks[0]))
    axes.set(xlabel="code length (bits)", ylabel=ylabel, xlim=(ticks[0] - room, ticks[-1] + room))
    fit_share_axis(axes, drawn)


def draw_losses(axes: Axes, rows: Rows, *, of_codes: bool) -> None:
    """Some parts of the loss against the iteration.

    With `of_codes` the parts f(U) of image, label and latent codes, which have similar sizes, else the other parts,
    which may differ by powers of ten; their axis is logarithmic if all are above 0 and the greatest is 100 times the
    least or more.
    """
    known = _loss_parts(rows)
    parts = [part for part in known if (part in _CODE_LOSSES) == of_codes]
    drawn: list[float] = []
    for part in parts:
        points = [(row["iteration"], row["loss"][part]) for row in rows if part in row["loss"]]
        axes.plot(
            *zip(*points, strict=True), label=part, markevery=_sparse(len(points)), **series_style(known.index(part))
        )  # fmt: skip
        drawn += [value for _, value in points]
    if not of_codes and drawn and min(drawn) > 0 and max(drawn) >= 100 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("loss f(U)" if of_codes else "other losses")
    _iterations(axes)
    if parts:
        legend_above(axes)


def draw_map(axes: Axes, rows: Rows, codes: str = "learned codes") -> None:
    """mAP at the evaluations, of the queries and of held-out images; without an evaluation the panel says so."""
    axes.set_ylabel(f"mAP, {codes}")
    _iterations(axes, [row["iteration"] for row in rows])
    drawn: list[float] = []
    for index, (key, name) in enumerate((("map", "queries"), ("validation_map", "held out"))):
        points = [(row["iteration"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, markevery=_sparse(len(points)), **series_style(index))
            drawn += [value for _, value in points]
    if len(axes.lines) > 1:
        legend_above(axes)
    if drawn:
        fit_share_axis(axes, drawn)
    else:
        axes.text(0.5, 0.5, "not evaluated yet", ha="center", va="center", transform=axes.transAxes)


def draw_bit_balance(axes: Axes, rows: Rows) -> None:
    """The mean of each bit over the drawn rows, a thin line for each bit, and the mean of their absolute values."""
    iterations = [row["iteration"] for row in rows]
    means = _stacked("bit_mean", [row["bit_mean"] for row in rows])  # [iterations, K]
    for bit in range(means.shape[1]):
        axes.plot(iterations, means[:, bit], color=GREY, linewidth=0.4, label="one bit" if bit == 0 else None)
    axes.plot(
        iterations, np.abs(means).mean(axis=1), color=BLACK, linewidth=1.6, marker="o", markersize=3,
        markevery=_sparse(len(iterations)), label="mean |mean|",
    )  # fmt: skip
    axes.set(ylabel="mean of a bit (0: balanced)", ylim=(-1.05, 1.05))
    legend_above(axes)
    _iterations(axes)


def draw_distinct(axes: Axes, rows: Rows) -> None:
    """The share of distinct codes among the drawn rows."""
    axes.plot(
        [row["iteration"] for row in rows], [row["distinct"] for row in rows], markevery=_sparse(len(rows)),
        **series_style(0),
    )  # fmt: skip
    axes.set(ylabel="share of distinct codes", ylim=(0, 1.02))
    _iterations(axes)


def _draw_means(axes: Axes, curves: Curves, differing: str) -> list[float]:
    """The mean over seeds of each name's curves {x: y}, with a band of ± one deviation; returns the extreme values."""
    drawn: list[float] = []
    for index, (name, seeds) in enumerate(curves.items()):
        places = [int(x) for x in seeds[0]]
        values = _stacked(name, [list(seed.values()) for seed in seeds])
        if any([int(x) for x in seed] != places for seed in seeds):
            raise UserError(f"{name}: the runs have different {differing}.")
        mean = values.mean(axis=0)
        style = series_style(index)
        axes.plot(places, mean, label=_counted(name, len(seeds), curves), **style)
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros_like(mean)
        if len(seeds) > 1:
            axes.fill_between(places, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
        drawn += [*(mean - spread), *(mean + spread)]
    return drawn


def _loss_parts(rows: Rows) -> list[str]:
    return list(dict.fromkeys(part for row in rows for part in row["loss"]))


def _iterations(axes: Axes, of: Sequence[int] | None = None) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    if of is not None:
        room = 0.05 * (of[-1] - of[0])
        axes.set_xlim(of[0] - room, of[-1] + room)


def _sparse(points: int) -> int:
    """`markevery` that leaves about 12 markers on a line."""
    return max(1, points // 12)


def _require(curves: Mapping[str, Any], what: str) -> None:
    if not curves or not all(len(curve) for curve in curves.values()):
        raise UserError(f"There are no {what} to draw; name a finished run.")


def _stacked(name: str, seeds: Sequence[Sequence[float]]) -> np.ndarray:
    if len({len(values) for values in seeds}) != 1:
        raise UserError(f"{name}: the curves have different lengths and no mean; compare runs of one code length.")
    return np.array(seeds, dtype=np.float64)


def _counted(name: str, seeds: int, curves: Curves) -> str:
    return f"{name} (n = {seeds})" if any(len(others) > 1 for others in curves.values()) else name


def precision_recall_figure(path: str | Path, curves: Curves, title: str = "") -> Path:
    """Write the figure of `draw_precision_recall`, as PNG or PDF by the ending of `path`."""
    return _one_panel(path, title, lambda axes: draw_precision_recall(axes, curves))


def cutoff_figure(path: str | Path, curves: Curves, ylabel: str = "precision@N", title: str = "") -> Path:
    """Write the figure of `draw_at_cutoffs`."""
    return _one_panel(path, title, lambda axes: draw_at_cutoffs(axes, curves, ylabel))


def iteration_figure(path: str | Path, curves: Curves, ylabel: str = "mAP", title: str = "") -> Path:
    """Write the figure of `draw_map_by_iteration`."""
    return _one_panel(path, title, lambda axes: draw_map_by_iteration(axes, curves, ylabel))


def map_figure(path: str | Path, series: Series, ylabel: str = "mAP", title: str = "") -> Path:
    """Write the figure of `draw_map_by_code_length`."""
    return _one_panel(path, title, lambda axes: draw_map_by_code_length(axes, series, ylabel))


@house_style()
def _one_panel(path: str | Path, title: str, draw: Callable[[Axes], None]) -> Path:
    figure = new_figure(COLUMN_WIDTH, 3.0)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, loc="left")
    legend_below(axes)
    return save(figure, path)


@house_style()
def training_figure(path: str | Path, rows: Rows, title: str = "", codes: str = "learned codes") -> Path:
    """Write the training curves of one code length: losses, mAP, bit balance, share of distinct codes.

    Args:
        path: of the file, .png or .pdf.
        rows: one for each iteration, in order: "iteration", "loss" (values by part), "bit_mean" ([K], means over the
            drawn rows), "distinct" (share of distinct codes), and after an evaluation "map" and "validation_map".
        title: above the losses.
        codes: the database codes that were evaluated.

    Raises:
        UserError: fewer than two rows, which make no curve.
    """
    if len(rows) < 2:
        raise UserError(f"{len(rows)} iteration(s) make no curve; training curves need two or more.")
    figure = new_figure(PAGE_WIDTH, 4.4)
    kinds = sorted({part in _CODE_LOSSES for part in _loss_parts(rows)}, reverse=True)  # a panel for each kind of part
    grid = figure.add_gridspec(2, 1)
    above, below = grid[0].subgridspec(1, max(1, len(kinds)), wspace=0.06), grid[1].subgridspec(1, 3, wspace=0.06)
    for column, of_codes in enumerate(kinds):
        draw_losses(figure.add_subplot(above[column]), rows, of_codes=of_codes)
    draw_map(figure.add_subplot(below[0]), rows, codes)
    draw_bit_balance(figure.add_subplot(below[1]), rows)
    draw_distinct(figure.add_subplot(below[2]), rows)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return save(figure, path)
