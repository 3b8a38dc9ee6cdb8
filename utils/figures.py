"""The curves of runs as pictures (docs/figures.md): `python -m utils.figures RUN_FOLDER [RUN_FOLDER …]`.

Three layers: `draw_*` put plain data on given axes; `*_figure` write one picture; `run_figures`, `evaluation_figures`
and `comparison_figures` read run folders and write all pictures that these allow.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from data import Split

from .errors import UserError
from .evaluate_command import CodeSet, evaluate_set, find_code_sets, load_code_set
from .gallery import gallery_figure, gallery_of
from .json_files import read_json
from .plot_style import (
    BLACK,
    COLUMN_WIDTH,
    FORMATS,
    GREY,
    PAGE_WIDTH,
    fit_share_axis,
    legend_above,
    legend_below,
    new_figure,
    save,
    series_style,
    styled,
)
from .settings import FREE_TO_CHANGE, Settings
from .splits import load_split

Rows = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Sequence[Mapping[str, Any]]]
Series = Mapping[str, Mapping[int, Sequence[float]]]

METHOD_NAMES = {"main_mmasia": "MM Asia", "main_tomm": "TOMM"}
DATABASES = ("learned", "learned_filled", "network")  # the three of results.json
NEVER_DRAWN = "rows never drawn filled in"
_CODE_LOSSES = ("image", "label", "latent")  # the parts f(U) of docs/method.md
_DATABASE_NAMES = {"learned": "learned codes", "learned_filled": NEVER_DRAWN, "network": "network's codes"}

# Settings that make no other experiment of a run: what a resumed run may change, and what is compared anyway.
_NOT_COMPARED = {*FREE_TO_CHANGE, "seed", "code_length", "eval_iter"}


# ---- Curves on given axes ----


def draw_precision_recall(axes: Axes, curves: Curves) -> None:
    """Precision against recall within Hamming radius 0, 1, …, K; a line a name.

    Args:
        axes: to draw on.
        curves: by name, a list with one {"precision": [K+1], "recall": [K+1]} a seed; the line is their mean at each
            radius, and the name tells their number where there are several.

    Raises:
        UserError: nothing to draw, or curves of unequal length under one name.
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
    """A figure of the first N items against N, on a logarithmic axis; a line a name.

    Args:
        axes: to draw on.
        curves: by name, a list with one {N: value} a seed (N may be text, as in JSON); the line is their mean, the band
            around it ± their sample standard deviation where there are two or more.
        ylabel: what the values are.

    Raises:
        UserError: nothing to draw, or different N under one name.
    """
    _require(curves, f"values of {ylabel}")
    drawn: list[float] = []
    for index, (name, seeds) in enumerate(curves.items()):
        cutoffs = [int(n) for n in seeds[0]]
        values = _stacked(name, [list(seed.values()) for seed in seeds])
        if any([int(n) for n in seed] != cutoffs for seed in seeds):
            raise UserError(f"{name}: the runs have different N; compare runs on databases of one size.")
        mean = values.mean(axis=0)
        style = series_style(index)
        axes.plot(cutoffs, mean, label=_counted(name, len(seeds), curves), **style)
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros_like(mean)
        if len(seeds) > 1:
            axes.fill_between(cutoffs, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
        drawn += [*(mean - spread), *(mean + spread)]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="N, items from the top of the list", ylabel=ylabel)
    fit_share_axis(axes, drawn)


def draw_map_by_code_length(axes: Axes, series: Series, ylabel: str = "mAP") -> None:
    """Mean mAP against code length with ± the sample standard deviation over seeds; a line a name, n in the legend.

    Args:
        axes: to draw on.
        series: by name and code length, one mAP a seed. A single seed has no bar.
        ylabel: what the values are.

    Raises:
        UserError: nothing to draw.
    """
    _require(series, "mAP")
    figure = axes.get_figure()
    assert figure is not None
    drawn: list[float] = []
    for index, (name, by_length) in enumerate(series.items()):
        lengths = sorted(by_length)
        mean = np.array([np.mean(by_length[bits]) for bits in lengths])
        spread = np.array([np.std(by_length[bits], ddof=1) if len(by_length[bits]) > 1 else 0.0 for bits in lengths])
        # Bars of runs that agree would hide each other: each series is shifted by a few points, not in its data.
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

    Args:
        axes: to draw on.
        rows: of metrics.jsonl.
        of_codes: True: the f(U) of image, label and latent codes, which are of one size. False: the other parts, which
            may differ by decades; their axis is logarithmic where all are above 0 and the least is 1/100 of the
            greatest or less.
    """
    known = list(dict.fromkeys(part for row in rows for part in row["loss"]))
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


def draw_map(axes: Axes, rows: Rows) -> None:
    """mAP of the learned codes at the evaluations, and that of the held-out images where there are any (--validate).

    Without an evaluation the panel is empty and says so.
    """
    axes.set_ylabel("mAP, learned codes")
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
    """The mean of each bit over the drawn rows, a thin line a bit, and the mean of their absolute values."""
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
        raise UserError(f"There are no {what} to draw; name a run that has ended.")


def _stacked(name: str, seeds: Sequence[Sequence[float]]) -> np.ndarray:
    if len({len(values) for values in seeds}) != 1:
        raise UserError(f"{name}: the curves differ in length, so they have no mean; compare runs of one code length.")
    return np.array(seeds, dtype=np.float64)


def _counted(name: str, seeds: int, curves: Curves) -> str:
    return f"{name} (n = {seeds})" if any(len(others) > 1 for others in curves.values()) else name


# ---- Pictures ----


def precision_recall_figure(path: str | Path, curves: Curves, title: str = "") -> Path:
    """Write the picture of `draw_precision_recall` (PNG or PDF by the name's ending)."""
    return _one_panel(path, title, lambda axes: draw_precision_recall(axes, curves))


def cutoff_figure(path: str | Path, curves: Curves, ylabel: str = "precision@N", title: str = "") -> Path:
    """Write the picture of `draw_at_cutoffs`."""
    return _one_panel(path, title, lambda axes: draw_at_cutoffs(axes, curves, ylabel))


def map_figure(path: str | Path, series: Series, ylabel: str = "mAP", title: str = "") -> Path:
    """Write the picture of `draw_map_by_code_length`."""
    return _one_panel(path, title, lambda axes: draw_map_by_code_length(axes, series, ylabel))


@styled
def _one_panel(path: str | Path, title: str, draw: Callable[[Axes], None]) -> Path:
    figure = new_figure(COLUMN_WIDTH, 3.0)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, loc="left")
    legend_below(axes)
    return save(figure, path)


@styled
def training_figure(path: str | Path, rows: Rows, title: str = "") -> Path:
    """Write the training curves of one code length: losses, mAP, bit balance, share of distinct codes.

    Args:
        path: of the picture, .png or .pdf.
        rows: of metrics.jsonl, one code length, in order.
        title: above the losses.

    Raises:
        UserError: fewer than two rows, which make no curve.
    """
    if len(rows) < 2:
        raise UserError(f"{len(rows)} iteration(s) make no curve; training curves need two or more.")
    figure = new_figure(PAGE_WIDTH, 4.4)
    lines = figure.add_gridspec(2, 1)
    losses, codes = lines[0].subgridspec(1, 2, wspace=0.06), lines[1].subgridspec(1, 3, wspace=0.06)
    draw_losses(figure.add_subplot(losses[0]), rows, of_codes=True)
    draw_losses(figure.add_subplot(losses[1]), rows, of_codes=False)
    for column, draw in enumerate((draw_map, draw_bit_balance, draw_distinct)):
        draw(figure.add_subplot(codes[column]), rows)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return save(figure, path)


# ---- Run folders ----


class Run(NamedTuple):
    """What the files of a run's folder say: `settings` of config.json, `results` of results.json.

    Settings that an older run did not know yet have their defaults here.
    """

    folder: Path
    settings: dict[str, Any]
    results: list[dict[str, Any]]

    @property
    def title(self) -> str:
        return f"{_method(self.settings)}, {self.settings['dataset']}"


def read_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is no run's folder, the run has finished no code length, or a file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder of a run.")
    settings = read_json(folder / "config.json", dict).get("settings")
    if not isinstance(settings, dict) or not {"method", "dataset", "seed"} <= settings.keys():
        raise UserError(f"{folder / 'config.json'}: holds no settings of a run; name the folder of a run.")
    if not (folder / "results.json").exists():
        raise UserError(f"{folder}: has no results.json, no code length has been finished; wait for the run's end.")
    results = read_json(folder / "results.json", list)
    try:
        for row in results:
            int(row["code_length"]), int(row["topk"]), [row["map"][kind]["expected"] + 0 for kind in DATABASES]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'results.json'}: not the results of a run; restore the file.") from None
    if not results:
        raise UserError(f"{folder / 'results.json'}: holds no result; wait for the run's end.")
    return Run(folder, Settings().as_json() | settings, results)


def read_metrics(folder: str | Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of a run's metrics.jsonl by code length, in order. A last line half-written by a run is left out.

    Raises:
        UserError: the file is missing, empty or damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name the folder of a run.") from error
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    result: dict[int, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            int(row["iteration"]), row["loss"].items(), len(row["bit_mean"]), float(row["distinct"])
            result.setdefault(int(row["code_length"]), []).append(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: line {number} is not an iteration of a run; remove it.") from None
    if not result:
        raise UserError(f"{path}: holds no iteration yet; wait for the first one.")
    return result


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the seed, under a name that tells what else differs from the others.

    The name is the method, the dataset where there are several, and the settings that differ among the groups of that
    method and dataset.

    Raises:
        UserError: two runs of a group have the same seed and a code length in common: they are one sample, not two.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        compared = {key: value for key, value in run.settings.items() if key not in _NOT_COMPARED}
        groups.setdefault(json.dumps(compared, sort_keys=True), []).append(run)
    for group in groups.values():
        _require_distinct_seeds(group)
    several_datasets = len({run.settings["dataset"] for run in runs}) > 1
    named: dict[str, list[Run]] = {}
    for group in groups.values():
        settings = group[0].settings
        family = [
            other[0].settings
            for other in groups.values()
            if all(other[0].settings[key] == settings[key] for key in ("method", "dataset"))
        ]
        keys = [key for key in dict.fromkeys(key for one in family for key in one) if key not in _NOT_COMPARED]
        differing = [key for key in keys if len({json.dumps(one.get(key)) for one in family}) > 1]
        parts = [_method(settings), *([settings["dataset"]] if several_datasets else [])]
        parts += [f"{key} {settings.get(key)}" for key in differing]
        named[", ".join(parts)] = group
    return named


def _require_distinct_seeds(group: Sequence[Run]) -> None:
    seen: dict[tuple[int, int], Path] = {}
    for run in group:
        for row in run.results:
            key = run.settings["seed"], row["code_length"]
            if key in seen:
                raise UserError(
                    f"{run.folder} and {seen[key]}: the same settings, seed and code length, so not two samples; "
                    "name one of them."
                )
            seen[key] = run.folder


def map_series(groups: Mapping[str, Sequence[Run]], database: str = "learned") -> dict[str, dict[int, list[float]]]:
    """Expected mAP by group and code length, one value a seed: what `draw_map_by_code_length` takes.

    Args:
        groups: of `group_runs`.
        database: one of `DATABASES` of results.json.
    """
    series: dict[str, dict[int, list[float]]] = {}
    for name, runs in groups.items():
        by_length = series.setdefault(name, {})
        for run in runs:
            for row in run.results:
                by_length.setdefault(row["code_length"], []).append(row["map"][database]["expected"])
    return series


def run_figures(
    folder: str | Path,
    *,
    split: Split | None = None,
    output: str | Path | None = None,
    picture_format: str = "png",
) -> list[Path]:
    """Write every picture that the folder of a finished run allows into its `figures` folder.

    Training curves a code length with two iterations or more; mAP by code length where there are two or more; the
    curves of `evaluation_figures` where the codes were kept; with `split`, a gallery a code length.

    Args:
        folder: of the run.
        split: the run's queries and database, for the galleries.
        output: another folder for the pictures.
        picture_format: "png" or "pdf".

    Raises:
        UserError: the folder is no finished run's, a file is damaged, or `split` is not the run's.
    """
    run, metrics = read_run(folder), read_metrics(folder)
    code_sets = _code_sets(run)
    reports = [evaluate_set(code_set, topk=None) for code_set in code_sets]
    galleries = {}
    for code_set in code_sets if split is not None else []:
        query_code, database_code, *_ = load_code_set(code_set)
        assert split is not None
        galleries[query_code.shape[1]] = gallery_of(split, query_code, database_code)

    output = run.folder / "figures" if output is None else Path(output)
    written = [
        training_figure(output / f"training-{bits}bits.{picture_format}", rows, f"{run.title}, {bits} bits")
        for bits, rows in sorted(metrics.items())
        if len(rows) > 1
    ]
    if len(run.results) > 1:
        series = {_DATABASE_NAMES[kind]: map_series({"": [run]}, kind)[""] for kind in DATABASES}
        if series[NEVER_DRAWN] == series[_DATABASE_NAMES["learned"]]:
            del series[NEVER_DRAWN]
        path = output / f"map-by-code-length.{picture_format}"
        written.append(map_figure(path, series, _map_name([run]), run.title))
    if reports:
        written += evaluation_figures(
            run.folder, reports, output=output, picture_format=picture_format, title=run.title
        )
    for bits, content in sorted(galleries.items()):
        written.append(gallery_figure(output / f"gallery-{bits}bits.{picture_format}", content))
    return written


def evaluation_figures(
    folder: str | Path,
    evaluations: Sequence[Mapping[str, Any]],
    *,
    output: str | Path | None = None,
    picture_format: str = "png",
    title: str = "",
) -> list[Path]:
    """Write precision-recall and precision@N of evaluated codes, and NDCG@N of multi-label sets, a curve a code length.

    Args:
        folder: the pictures go into its `figures` folder.
        evaluations: reports of `utils.evaluate` (`evaluate_set`, or what its --json wrote).
        output: another folder for the pictures.
        picture_format: "png" or "pdf".
        title: above the curves.

    Raises:
        UserError: no report.
    """
    output = Path(folder) / "figures" if output is None else Path(output)
    lengths = [report["code_length"] for report in evaluations]
    names = [
        f"{report['code_length']} bits" if len(set(lengths)) == len(lengths) else report["name"]
        for report in evaluations
    ]
    return _evaluation_pictures(
        {name: [report] for name, report in zip(names, evaluations, strict=True)}, output, "", picture_format, title
    )


def _evaluation_pictures(
    reports: Mapping[str, Sequence[Mapping[str, Any]]], output: Path, suffix: str, picture_format: str, title: str
) -> list[Path]:
    def curves(key: str) -> dict[str, list[Any]]:
        return {name: [seed[key] for seed in seeds] for name, seeds in reports.items()}

    several = any(len(seeds) > 1 for seeds in reports.values())
    mean, mean_and_spread = (
        f"{title}, {what} over seeds" if several else title for what in ("mean", "mean ± std")
    )  # fmt: skip
    written = [
        precision_recall_figure(
            output / f"precision-recall{suffix}.{picture_format}", curves("precision_recall"), mean
        ),
        cutoff_figure(
            output / f"precision-at-n{suffix}.{picture_format}", curves("precision_at"), title=mean_and_spread
        ),
    ]
    if all("ndcg_at" in seed for seeds in reports.values() for seed in seeds):
        path = output / f"ndcg-at-n{suffix}.{picture_format}"
        written.append(cutoff_figure(path, curves("ndcg_at"), "NDCG@N", mean_and_spread))
    return written


def comparison_figures(
    folders: Sequence[str | Path], output: str | Path, *, database: str = "learned", picture_format: str = "png"
) -> list[Path]:
    """Write the pictures that compare several runs; runs that differ in nothing but the seed are one curve.

    mAP by code length (mean ± sample standard deviation over seeds), and for each code length precision-recall and
    precision@N of the learned codes (means over seeds).

    Args:
        folders: of finished runs.
        output: folder for the pictures.
        database: which mAP of results.json, one of `DATABASES`.
        picture_format: "png" or "pdf".

    Raises:
        UserError: a folder is no finished run's, or two runs are the same experiment with the same seed.
    """
    runs = [read_run(folder) for folder in folders]
    groups = group_runs(runs)
    output = Path(output)
    datasets = sorted({run.settings["dataset"] for run in runs})
    heading = datasets if len(datasets) == 1 else []
    spread = ["mean ± std over seeds"] if any(len(group) > 1 for group in groups.values()) else []
    ylabel = f"{_map_name(runs)}, {_DATABASE_NAMES[database]}"
    path = output / f"map-by-code-length.{picture_format}"
    written = [map_figure(path, map_series(groups, database), ylabel, ", ".join(heading + spread))]

    by_length: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for name, group in groups.items():
        for run in group:
            for code_set in _code_sets(run):
                report = evaluate_set(code_set, topk=None)
                by_length.setdefault(report["code_length"], {}).setdefault(name, []).append(report)
    for bits, reports in sorted(by_length.items()):
        title = ", ".join([*heading, f"{bits} bits"])
        written += _evaluation_pictures(reports, output, f"-{bits}bits", picture_format, title)
    return written


def _code_sets(run: Run) -> list[CodeSet]:
    """The code files that results.json speaks of, where they were kept; a run killed midway may have left others."""
    if not any(run.folder.glob("*-query_code.t")):
        return []
    names = {
        f"{run.settings['dataset']}-{row['code_length']}bits-{row['map']['learned']['expected']:.4f}"
        for row in run.results
    }
    return [code_set for code_set in find_code_sets([run.folder]) if code_set.name in names]


def _method(settings: Mapping[str, Any]) -> str:
    return METHOD_NAMES.get(settings["method"], str(settings["method"]))


def _map_name(runs: Iterable[Run]) -> str:
    """ "mAP", or "mAP@R" with the R that all runs share, or with the letter where they differ."""
    cuts = {row["topk"] for run in runs for row in run.results}
    if all(topk <= 0 for topk in cuts):
        return "mAP"
    return f"mAP@{cuts.pop()}" if len(cuts) == 1 else "mAP@R"


# ---- Command ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.figures",
        description="Draw the pictures of a finished run, or those that compare several.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="folder of a finished run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for the pictures [figures, in or beside the run's]"
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="png or pdf [png]")
    parser.add_argument(
        "--codes", choices=DATABASES, default="learned", help="several runs: whose mAP of results.json [learned]"
    )
    parser.add_argument(
        "--gallery", action="store_true", help="one run: also load its images and draw a retrieval gallery"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, or 2 for what the user can mend."""
    options = _parser().parse_args(arguments)
    folders = options.folders
    try:
        if len(folders) == 1:
            split = _split_of(read_run(folders[0])) if options.gallery else None
            written = run_figures(folders[0], split=split, output=options.output, picture_format=options.format)
        elif options.gallery:
            raise UserError("--gallery: draws one run; name one folder.")
        else:
            parents = [folder.resolve().parent for folder in folders]
            output = options.output or Path(os.path.relpath(os.path.commonpath(parents))) / "figures"
            written = comparison_figures(folders, output, database=options.codes, picture_format=options.format)
    except UserError as error:
        print(f"python -m utils.figures: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


def _split_of(run: Run) -> Split:
    """The run's queries and database, loaded again as its settings say."""
    return load_split(Settings.for_dataset(**run.settings))


if __name__ == "__main__":
    sys.exit(main())
