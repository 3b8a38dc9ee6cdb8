"""`python -m reports figures RUN...`: the curves of runs as pictures (docs/figures.md)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import Split
from plots.curves import NEVER_DRAWN, cutoff_figure, map_figure, precision_recall_figure, training_figure
from plots.gallery import gallery_figure, gallery_of
from plots.style import (
    FORMATS,
)
from reports.evaluate import evaluate_set
from training.preflight import load_split
from training.settings import FREE_TO_CHANGE, Settings
from utils.errors import UserError
from utils.runs import DATABASES, METRICS, CodeSet, Run, find_code_sets, load_code_set, read_metrics, read_run

METHOD_NAMES = {"main_mmasia": "MM Asia", "main_tomm": "TOMM"}


_DATABASE_NAMES = {"learned": "learned codes", "learned_filled": NEVER_DRAWN, "network": "network's codes"}


# Settings that make no other experiment of a run: what a resumed run may change, and what is compared anyway.
_NOT_COMPARED = {*FREE_TO_CHANGE, "seed", "code_length", "eval_iter"}


def load_run(folder: str | Path) -> Run:
    """`utils.runs.read_run`; settings that an older run does not have get their defaults."""
    run = read_run(Path(folder))
    return run._replace(settings=Settings().as_json() | run.settings)


def metrics_by_length(folder: str | Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of metrics.jsonl by code length, in order.

    Raises:
        UserError: the file is missing, empty or damaged.
    """
    result: dict[int, list[dict[str, Any]]] = {}
    for row in read_metrics(Path(folder)):
        result.setdefault(row["code_length"], []).append(row)
    if not result:
        raise UserError(f"{Path(folder) / METRICS}: has no iteration yet; wait for the first one.")
    return result


def _title(run: Run) -> str:
    return f"{_method(run.settings)}, {run.settings['dataset']}"


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
    run, metrics = load_run(folder), metrics_by_length(folder)
    code_sets = _code_sets(run)
    reports = [evaluate_set(code_set, topk=None) for code_set in code_sets]
    galleries = {}
    for code_set in code_sets if split is not None else []:
        query_code, database_code, *_ = load_code_set(code_set)
        assert split is not None
        galleries[query_code.shape[1]] = gallery_of(split, query_code, database_code)

    output = run.folder / "figures" if output is None else Path(output)
    written = [
        training_figure(output / f"training-{bits}bits.{picture_format}", rows, f"{_title(run)}, {bits} bits")
        for bits, rows in sorted(metrics.items())
        if len(rows) > 1
    ]
    if len(run.results) > 1:
        series = {_DATABASE_NAMES[kind]: map_series({"": [run]}, kind)[""] for kind in DATABASES}
        if series[NEVER_DRAWN] == series[_DATABASE_NAMES["learned"]]:
            del series[NEVER_DRAWN]
        path = output / f"map-by-code-length.{picture_format}"
        written.append(map_figure(path, series, _map_name([run]), _title(run)))
    if reports:
        written += evaluation_figures(
            run.folder, reports, output=output, picture_format=picture_format, title=_title(run)
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
    runs = [load_run(folder) for folder in folders]
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports figures",
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
            split = _split_of(load_run(folders[0])) if options.gallery else None
            written = run_figures(folders[0], split=split, output=options.output, picture_format=options.format)
        elif options.gallery:
            raise UserError("--gallery: draws one run; name one folder.")
        else:
            parents = [folder.resolve().parent for folder in folders]
            output = options.output or Path(os.path.relpath(os.path.commonpath(parents))) / "figures"
            written = comparison_figures(folders, output, database=options.codes, picture_format=options.format)
    except UserError as error:
        print(f"python -m reports figures: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


def _split_of(run: Run) -> Split:
    """The run's queries and database, loaded again as its settings say."""
    return load_split(Settings.for_dataset(**run.settings))
