"""`python -m reports figures RUN...`: draw the figures of one run, or compare several (docs/figures.md)."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data import Split
from plots.curves import iteration_figure, map_figure, training_figure
from plots.gallery import gallery_figure, gallery_of
from plots.style import FORMATS
from reports import COMMANDS
from reports.code_files import CodeSet, find_code_sets, load_code_set
from reports.evaluate import by_name, evaluate_set, evaluation_figures
from reports.tables import as_flags, divided_settings, read_curves
from training.preflight import load_split
from training.settings import FREE_TO_CHANGE, Settings, preset_of
from utils.command import Parser, run_command
from utils.errors import UserError
from utils.interrupt import Interrupted
from utils.runs import (
    CONFIG,
    DATABASES,
    METRICS,
    Run,
    code_set_name,
    read_metrics,
    read_run,
)

COMMAND = "python -m reports figures"

# How titles and legends name a method; one that is not here goes by its name on the command line.
METHOD_NAMES = {
    "main_mmasia": "MM Asia",
    "main_tomm": "TOMM",
    "adsh": "ADSH",
    "dpsh": "DPSH",
    "hashnet": "HashNet",
    "csq": "CSQ",
    "greedyhash": "GreedyHash",
    "orthohash": "OrthoHash",
}
CODE_NAMES = {
    "learned": "learned codes",
    "learned_filled": "rows never drawn filled in",
    "network": "network's codes",
}

# Two runs that differ in nothing but these settings are compared as runs of one experiment.
_NOT_COMPARED = {*FREE_TO_CHANGE, "seed", "code_length", "eval_iter"}


def load_run(folder: Path) -> Run:
    """`read_run`; settings that an older run does not have get the preset's value."""
    run = read_run(folder)
    return run._replace(settings=preset_of(run.settings) | run.settings)


def metrics_by_length(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of metrics.jsonl by code length, in order; a UserError if there is none."""
    result = defaultdict(list)
    for row in read_metrics(folder):
        result[row["code_length"]].append(row)
    if not result:
        raise UserError(f"{folder / METRICS}: has no iteration yet; wait for the first one.")
    return result


def codes_of(run: Run, database: str = "learned") -> str:
    """`database`, or "network" where the method learns no database codes."""
    return database if all(database in row["map"] for row in run.results) else "network"


def _code_sets(run: Run) -> list[CodeSet]:
    """The code files that belong to results.json, if they were kept; a run that was killed may have left others."""
    if not any(run.folder.glob("*-query_code.t")):
        return []
    names = {
        code_set_name(run.settings["dataset"], row["code_length"], row["map"][codes_of(run)]["expected"])
        for row in run.results
    }
    return [code_set for code_set in find_code_sets([run.folder]) if code_set.name in names]


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group the runs that differ only in the seed.

    The name of a group is the method, the dataset if there are several, and the settings in which the groups of this
    method and dataset differ.

    Raises:
        UserError: two runs of a group have the same seed and share a code length, so they are one sample, not two.
    """
    groups = defaultdict(list)
    for run in runs:
        compared = {key: value for key, value in run.settings.items() if key not in _NOT_COMPARED}
        groups[json.dumps(compared, sort_keys=True)].append(run)
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
                    f"{run.folder} and {seen[key]}: both have the same settings, seed and code length, so they are one "
                    "sample; name only one of them."
                )
            seen[key] = run.folder


def map_series(groups: Mapping[str, Sequence[Run]], database: str = "learned") -> dict[str, dict[int, list[float]]]:
    """Expected mAP by group and code length, one value for each seed; by `codes_of` where there is no `database`."""
    series: dict[str, dict[int, list[float]]] = {}
    for name, runs in groups.items():
        series[name] = defaultdict(list)
        for run in runs:
            for row in run.results:
                series[name][row["code_length"]].append(row["map"][codes_of(run, database)]["expected"])
    return series


# By code length and group, one {iteration: mAP} for each seed.
_Curves = dict[int, dict[str, list[dict[int, float]]]]


def map_by_iteration(groups: Mapping[str, Sequence[Run]]) -> _Curves:
    """{iteration: mAP} of each seed, by code length and group, at the two or more iterations that all seeds share."""
    curves: _Curves = defaultdict(lambda: defaultdict(list))
    for name, runs in groups.items():
        for run in runs:
            for bits, rows in metrics_by_length(run.folder).items():
                curves[bits][name].append({row["iteration"]: row["map"] for row in rows if "map" in row})
    return _at_shared_iterations(curves)


def _at_shared_iterations(curves: _Curves) -> _Curves:
    result: _Curves = defaultdict(dict)
    for bits, named in curves.items():
        for name, seeds in named.items():
            shared = sorted(set.intersection(*map(set, seeds)))
            if len(shared) > 1:
                result[bits][name] = [{iteration: seed[iteration] for iteration in shared} for seed in seeds]
    return result


def run_figures(
    folder: Path, *, split: Split | None = None, output: Path | None = None, file_format: str = "png"
) -> list[Path]:
    """Write all figures that the folder of a finished run allows.

    These are the training curves of each code length with two or more iterations, mAP by code length if there are two
    or more, the `evaluation_figures` if the codes were kept, and, with the `split` of the run, a gallery for each code
    length. The default of `output` is the folder figures in that of the run.

    Raises:
        UserError: not the folder of a finished run, a damaged file, or a `split` of another size.
    """
    run, metrics = load_run(folder), metrics_by_length(folder)
    code_sets = _code_sets(run)
    reports = [evaluate_set(code_set, topk=None) for code_set in code_sets]
    galleries = {}
    if split is not None:
        for code_set in code_sets:
            query_code, database_code, *_ = load_code_set(code_set)
            galleries[query_code.shape[1]] = gallery_of(split, query_code, database_code)

    output = run.folder / "figures" if output is None else output
    title, codes = f"{_method(run.settings)}, {run.settings['dataset']}", CODE_NAMES[codes_of(run)]
    written = [
        training_figure(output / f"training-{bits}bits.{file_format}", rows, f"{title}, {bits} bits", codes)
        for bits, rows in sorted(metrics.items())
        if len(rows) > 1
    ]
    if len(run.results) > 1:
        kinds = [kind for kind in DATABASES if codes_of(run, kind) == kind]
        series = {CODE_NAMES[kind]: map_series({"": [run]}, kind)[""] for kind in kinds}
        if series.get(CODE_NAMES["learned_filled"]) == series.get(CODE_NAMES["learned"]):
            series.pop(CODE_NAMES["learned_filled"], None)
        written.append(map_figure(output / f"map-by-code-length.{file_format}", series, _map_name([run]), title))
    if reports:
        written += evaluation_figures(output, by_name(reports), file_format=file_format, title=title)
    for bits, content in sorted(galleries.items()):
        written.append(gallery_figure(output / f"gallery-{bits}bits.{file_format}", content))
    return written


def comparison_figures(
    folders: Sequence[Path], output: Path, *, database: str = "learned", file_format: str = "png"
) -> list[Path]:
    """Write the figures that compare several runs into `output`; runs that differ only in the seed are one curve.

    These are mAP by code length (mean ± sample standard deviation over seeds), and for each code length mAP by
    iteration and the `evaluation_figures` of the saved codes. Where some methods learn no codes, the legend marks the
    curves of network's codes.

    Raises:
        UserError: not the folder of a finished run, or two runs of one experiment with the same seed.
    """
    runs = [load_run(folder) for folder in folders]
    groups = group_runs(runs)
    datasets = {run.settings["dataset"] for run in runs}
    heading = [*datasets] if len(datasets) == 1 else []
    spread = ["mean ± std over seeds"] if any(len(group) > 1 for group in groups.values()) else []
    shared, marked = _marked(groups, database)
    ylabel = f"{_map_name(runs)}, {CODE_NAMES[shared]}"
    path = output / f"map-by-code-length.{file_format}"
    written = [map_figure(path, map_series(marked, database), ylabel, ", ".join(heading + spread))]

    codes, by_codes = _marked(groups, "learned")
    for bits, curves in sorted(map_by_iteration(by_codes).items()):
        path = output / f"map-by-iteration-{bits}bits.{file_format}"
        ylabel = f"{_map_name(runs)}, {CODE_NAMES[codes]}"
        written.append(iteration_figure(path, curves, ylabel, ", ".join([*heading, f"{bits} bits"])))

    by_length: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for name, group in by_codes.items():
        for run in group:
            for code_set in _code_sets(run):
                report = evaluate_set(code_set, topk=None)
                by_length[report["code_length"]][name].append(report)
    for bits, reports in sorted(by_length.items()):
        title = ", ".join([*heading, f"{bits} bits"])
        written += evaluation_figures(output, reports, suffix=f"-{bits}bits", file_format=file_format, title=title)
    return written


def curve_figures(path: Path, output: Path, *, file_format: str = "png") -> list[Path]:
    """Write mAP by iteration for each code length of a CSV that `python -m reports tables --curves` wrote.

    Raises:
        UserError: another file, or a figure cannot be written.
    """
    rows = read_curves(path)
    rows["method"] = pd.Categorical(rows["method"], [*METHOD_NAMES, *sorted({*rows["method"]} - {*METHOD_NAMES})])
    both = rows["codes"].nunique() > 1
    curves: _Curves = defaultdict(lambda: defaultdict(list))
    rows["flags"] = [as_flags(own).strip() for own in divided_settings(rows, "method")[1]]
    keys = ["method", "flags", "codes", "code_length", "seed"]
    for (method, flags, codes, bits, _), own in rows.groupby(keys, observed=True):
        parts = [METHOD_NAMES.get(method, method), *([flags] if flags else [])]
        parts += [CODE_NAMES["network"]] if both and codes == "network" else []
        curves[bits][", ".join(parts)].append(dict(zip(own["iteration"], own["map"], strict=True)))
    heading = [*rows["dataset"].unique()] if rows["dataset"].nunique() == 1 else []
    ylabel = f"mAP, {CODE_NAMES['learned' if both else rows['codes'].iloc[0]]}"
    return [
        iteration_figure(
            output / f"map-by-iteration-{bits}bits.{file_format}", named, ylabel, ", ".join([*heading, f"{bits} bits"])
        )
        for bits, named in sorted(_at_shared_iterations(curves).items())
    ]


def _marked(groups: Mapping[str, list[Run]], database: str) -> tuple[str, dict[str, list[Run]]]:
    """The codes that the y axis names, "network" if no run has `database`; and the groups, with other codes named."""
    found = {codes_of(run, database) for group in groups.values() for run in group}
    shared = database if database in found else "network"
    return shared, {
        name if codes_of(group[0], database) == shared else f"{name}, {CODE_NAMES['network']}": group
        for name, group in groups.items()
    }


def _method(settings: Mapping[str, Any]) -> str:
    return METHOD_NAMES.get(settings["method"], str(settings["method"]))


def _map_name(runs: Iterable[Run]) -> str:
    """The y axis: "mAP", or "mAP@R" with the R of all runs, or with the letter where they differ."""
    cuts = {row["topk"] for run in runs for row in run.results}
    if all(topk <= 0 for topk in cuts):
        return "mAP"
    return f"mAP@{cuts.pop()}" if len(cuts) == 1 else "mAP@R"


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line."""
    return run_command(COMMAND, lambda: _draw(arguments))


def _draw(arguments: Sequence[str]) -> None:
    parser = Parser(prog=COMMAND, description=COMMANDS["figures"])
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN", help="folder of a finished run, or a CSV of curves"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for the figures [figures, in or beside the run's]"
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="png or pdf [png]")
    parser.add_argument(
        "--codes", choices=DATABASES, default="learned", help="several runs: which mAP of results.json [learned]"
    )
    parser.add_argument("--gallery", action="store_true", help="one run: load its images and draw a retrieval gallery")
    options = parser.parse_args(arguments)
    folders = options.folders
    try:
        if len(folders) == 1 and folders[0].suffix == ".csv":
            written = curve_figures(folders[0], options.output or folders[0].parent, file_format=options.format)
        elif len(folders) == 1:
            split = (
                load_split(Settings.from_json(load_run(folders[0]).settings, folders[0] / CONFIG))
                if options.gallery
                else None
            )
            written = run_figures(folders[0], split=split, output=options.output, file_format=options.format)
        elif options.gallery:
            raise UserError("--gallery: draws one run; name one folder.")
        else:
            parents = [folder.resolve().parent for folder in folders]
            output = options.output or Path(os.path.relpath(os.path.commonpath(parents))) / "figures"
            written = comparison_figures(folders, output, database=options.codes, file_format=options.format)
    except (Interrupted, KeyboardInterrupt) as stopped:
        stopped.add_note("the figures that are finished stay")
        raise
    for path in written:
        print(path)
