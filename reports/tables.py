"""`python -m reports tables SOURCE...`: finished runs as a CSV, tables and comparisons (docs/tables.md)."""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from reports import COMMANDS
from reports.rendering import Table
from reports.significance import paired
from training.settings import differing_settings, flag_of
from utils.command import Parser, run_command
from utils.errors import UserError
from utils.files import require_place, write_file
from utils.runs import CONFIG, DATABASES, FAILURE, RESULTS, read_config, read_metrics, read_results

COMMAND = "python -m reports tables"

COUNTS = ["code_length", "seed", "iterations", "topk"]
MAPS = [f"{database}_{ties}" for database in DATABASES for ties in ("expected", "stable")]
FIELDS = [
    *("method", "dataset", *COUNTS, *MAPS, "best", "best_iteration", "seconds"),
    *("settings", "commit", "torch", "device", "command"),
]
CURVE_FIELDS = [
    *("method", "dataset", "settings", "seed", "code_length"),
    *("iteration", "map", "codes", "validation_map", "seconds", "device"),
]
CURVE_NUMBERS = ["seed", "code_length", "iteration", "map", "validation_map", "seconds"]
# A method that learns no database codes leaves these cells empty.
MAY_BE_EMPTY = {name for name in MAPS if not name.startswith("network")}
NUMBERS = [*COUNTS, "seconds", "map", *MAPS]
PUBLISHED = Path(__file__).parents[1] / "results" / "published.csv"
PUBLISHED_FIELDS = ["method", "dataset", "code_length", "map", "network", "protocol", "source"]

# What the runs of one mean have in common, besides dataset and code length.
VARIANT = ["method", "settings", "iterations", "topk"]


def gather(folder: Path) -> pd.DataFrame:
    """One row of text for each finished code length of all runs in `folder`, at any depth."""
    rows: list[dict[str, str]] = []
    for path, config in _finished(folder):
        try:
            rows += [_row(result, config) for result in read_results(path.parent)]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: not the results of a run ({reason}); restore the file.") from error
    return pd.DataFrame(rows, columns=FIELDS, dtype=str)


def _finished(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The results.json and the config.json's content of every run in a folder."""
    for path in sorted(folder.rglob(RESULTS)):
        config = read_config(path.parent)
        for field in ("method", "dataset", "lr", "seed"):
            if field not in config["settings"]:
                raise UserError(f"{path.with_name(CONFIG)}: lacks the setting '{field}'; restore the file.")
        yield path, config


def _row(result: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    commit = config["commit"] or {"hash": "unknown", "dirty": False}
    best = result.get("best")
    row = {field: result[field] for field in FIELDS[: FIELDS.index(MAPS[0])]}
    for database in DATABASES:
        for ties in ("expected", "stable"):
            found = result["map"].get(database)
            row[f"{database}_{ties}"] = f"{found[ties]:.6f}" if found else ""
    row |= {
        "best": f"{best['expected']:.6f}" if best else "",
        "best_iteration": best["iteration"] if best else "",
        "seconds": f"{result['seconds']:.0f}",
        "settings": _settings(config),
        "commit": commit["hash"][:10] + ("+" if commit["dirty"] else ""),
        "torch": config["versions"]["torch"],
        "device": config["device"],
        "command": config["command"],
    }
    return {field: str(value) for field, value in row.items()}


def _settings(config: dict[str, Any]) -> str:
    """The column `settings`: those that differ from the preset of the dataset, as compact JSON; "": none."""
    differing = differing_settings(config["settings"])
    return json.dumps(differing, sort_keys=True, separators=(",", ":")) if differing else ""


def read_csv(path: Path, fields: Sequence[str] = FIELDS) -> pd.DataFrame:
    """The rows of a CSV as text; the column `settings` is empty in a CSV that does not have it.

    Raises:
        UserError: the file cannot be read, a column is missing, or a cell does not hold its number.
    """
    rows = _cells(path, "name a folder or a CSV of runs")
    if "settings" in fields and "settings" not in rows:
        rows["settings"] = ""
    for field in fields:
        if field not in rows:
            raise UserError(f"{path}: has no column '{field}'; name a folder, or a CSV that this command wrote.")
    for number, row in enumerate(rows.to_dict("records"), 1):
        if any(map(pd.isna, row.values())):
            raise UserError(f"{path}: row {number} is damaged (fewer cells than the header); restore the file.")
        try:
            for field in NUMBERS:
                if field in row and (row[field] or field not in MAY_BE_EMPTY) and not isfinite(float(row[field])):
                    raise ValueError(f"{field} {row[field]}")
            if not isinstance(json.loads(row.get("settings") or "{}"), dict):
                raise ValueError(f"settings {row['settings']}")
        except ValueError as error:
            raise UserError(f"{path}: row {number} is damaged ({error}); restore the file.") from error
    return rows[[*fields]]


def _cells(path: Path, remedy: str) -> pd.DataFrame:
    """The cells of a CSV as text; a UserError with the `remedy` where the file is empty or cannot be read."""
    try:
        # The engine "python" tells a cell that is missing from an empty one.
        return pd.read_csv(path, dtype=str, keep_default_na=False, engine="python")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({' '.join(str(error).split())}); {remedy}.") from error


def curves(folders: Sequence[Path]) -> pd.DataFrame:
    """The evaluations during training of all finished runs in the folders: one row for each iteration with an mAP."""
    rows = []
    for folder in folders:
        for path, config in _finished(folder):
            run = {key: config["settings"][key] for key in ("method", "dataset", "seed")}
            run["settings"] = _settings(config)
            learned = any("learned" in row["map"] for row in read_results(path.parent))
            run["codes"] = "learned" if learned else "network"
            seconds: dict[int, float] = defaultdict(float)
            for row in read_metrics(path.parent):
                seconds[row["code_length"]] += row.get("seconds", 0)
                if "map" in row:
                    point = {key: row.get(key) for key in ("code_length", "iteration", "map", "validation_map")}
                    point |= {"seconds": round(seconds[row["code_length"]]), "device": config.get("device", "")}
                    rows.append(run | point)
    return pd.DataFrame(rows, columns=CURVE_FIELDS)


def read_curves(path: Path) -> pd.DataFrame:
    """The rows of a CSV that `--curves` wrote; a UserError if it is another file, or damaged."""
    rows = _cells(path, "restore it, or name another file with --curves")
    if list(rows) != CURVE_FIELDS:
        raise UserError(f"--curves {path}: is not a CSV that --curves wrote; name another file.")
    try:
        for field in CURVE_NUMBERS:
            rows[field] = pd.to_numeric(rows[field])
        if not all(isinstance(json.loads(text or "{}"), dict) for text in rows["settings"].unique()):
            raise ValueError("settings that are no object of JSON")
    except (ValueError, TypeError) as error:
        raise UserError(f"--curves {path}: is damaged ({error}); restore it, or name another file.") from error
    return rows


def add_curves(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The `rows` of `curves` with those of other runs that the CSV at `path` has, if there is one; sorted."""
    keys = ["dataset", "method", "settings", "code_length", "seed", "iteration"]
    if path.exists():
        known = read_curves(path)
        rows = pd.concat([part for part in (known, rows) if len(part)] or [rows])
    return rows.drop_duplicates(keys, keep="last").sort_values(keys)


def collect(sources: Sequence[Path]) -> pd.DataFrame:
    """The rows of all sources, folders and CSV files, sorted; a row that several sources have is kept once.

    Runs that have failed are named on stderr.

    Raises:
        UserError: a source does not exist, or there is no finished run.
    """
    found = []
    for source in sources:
        if not source.exists():
            raise UserError(f"{source}: there is no such folder or CSV file.")
        found.append(gather(source) if source.is_dir() else read_csv(source))
        for path in sorted(source.rglob(FAILURE)) if source.is_dir() else []:
            if not path.with_name(RESULTS).exists():
                print(f"{COMMAND}: {path.parent}: this run has failed; the tables leave it out.", file=sys.stderr)
    rows = pd.concat(found).drop_duplicates()
    if rows.empty:
        names = ", ".join(map(str, sources))
        raise UserError(f"{names}: there is no finished run; wait for one or name other folders.")
    keys = ["dataset", "method", "settings", "code_length", "seed"]
    rows = rows.sort_values(keys, key=lambda cells: pd.to_numeric(cells) if cells.name in COUNTS else cells)
    return rows.reset_index(drop=True)


def as_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with numbers in `COUNTS`, `MAPS` and seconds (an empty cell is NaN), and with two names.

    What all runs of a dataset have in `settings` moves to "shared", as flags. "flags" is the method with the flags that
    remain, as in "main_tomm --lr 0.001". "variant" adds iterations and topk where nothing else tells variants apart, as
    in a CSV from before the column `settings`.
    """
    runs = rows.copy()
    for field in (*COUNTS, *MAPS, "seconds"):
        runs[field] = pd.to_numeric(runs[field])
    shared, remaining = divided_settings(runs, "dataset")
    runs["shared"] = runs["dataset"].map(lambda dataset: as_flags(shared[dataset]).strip())
    runs["settings"] = [json.dumps(own, sort_keys=True) if own else "" for own in remaining]
    runs["flags"] = runs["method"] + [as_flags(own) for own in remaining]
    alike = ["method", "settings"]
    iterations = _where_several(runs, alike, "iterations", " ({} iterations)")
    runs["variant"] = runs["flags"] + iterations + _where_several(runs, alike, "topk", " (topk {})")
    return runs


def divided_settings(rows: pd.DataFrame, by: str) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """What all rows with one value of the column `by` have in `settings`, by that value; and the rest of each row."""
    settings = rows["settings"].map(lambda text: json.loads(text or "{}"))
    shared = {value: _shared(own.tolist()) for value, own in settings.groupby(rows[by], observed=True)}
    return shared, [
        {field: value for field, value in own.items() if field not in shared[group]}
        for own, group in zip(settings, rows[by], strict=True)
    ]


def _shared(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all of several runs have."""
    return {field: value for field, value in settings[0].items() if all(own.get(field) == value for own in settings)}


def as_flags(settings: dict[str, Any]) -> str:
    """Settings as on the command line, each after a blank: " --lr 0.001 --no-discriminator"."""
    flags = ""
    for field, value in sorted(settings.items()):
        flags += f" {flag_of(field)}" + ("" if value is True else f" {value}")
    return flags


def _where_several(runs: pd.DataFrame, alike: list[str], field: str, template: str) -> pd.Series:
    """The text for each run's `field`; empty where all runs that are `alike` have the same."""
    several = runs.groupby(alike)[field].transform("nunique") > 1
    return runs[field].map(template.format).where(several, "")


def long_table(runs: pd.DataFrame) -> Table:
    """Mean ± standard deviation (n − 1) of the expected mAP over seeds, a line for each variant and code length."""
    # The iterations have their own column.
    names = runs["flags"] + _where_several(runs, ["method", "settings", "iterations"], "topk", " (topk {})")
    lines = []
    keys = ["dataset", "method", "settings", "code_length", "iterations", "topk"]
    for (dataset, _, _, bits, iterations, _), cells in runs.groupby(keys):
        means = [mean_and_deviation(cells[f"{database}_expected"]) for database in DATABASES]
        seeds = f"{len(cells)} ({', '.join(cells['seed'].astype(str))})"
        seconds = f"{cells['seconds'].median():.0f}"
        lines.append([dataset, names[cells.index[0]], str(bits), str(iterations), seeds, *means, seconds])
    header = ["dataset", "method", "bits", "iterations", "n (seeds)", "learned", "learned, filled", "network"]
    return Table("", [*header, "seconds (median)"], lines, remarks(runs))


def wide_tables(runs: pd.DataFrame) -> list[Table]:
    """For each dataset a table, variants and their codes × code lengths, and a table of published results."""
    tables = []
    for dataset, here in runs.groupby("dataset"):
        lengths = sorted(here["code_length"].unique())
        lines = []
        for _, own in here.groupby(VARIANT):
            by_length = dict(iter(own.groupby("code_length")))
            most = max(map(len, by_length.values()))
            for database in DATABASES:
                means = {bits: mean_and_deviation(cells[f"{database}_expected"]) for bits, cells in by_length.items()}
                if not any(means.values()):
                    continue  # the method learns no database codes
                for bits, cells in by_length.items():
                    if len(cells) < most:
                        means[bits] += f" (n = {len(cells)})"
                row = [means.get(bits, "") for bits in lengths]
                lines.append([own["variant"].iloc[0], database, str(most), *row])
        cuts = sorted(here["topk"].unique())
        cut = " or ".join("over the whole database" if topk <= 0 else f"at {topk}" for topk in cuts)
        note = f"mAP {cut}, expected over ties; mean ± standard deviation over n seeds. {remarks(here)}"
        if repeated := sorted(_repeated(here)):
            note += f" More than one run of the same seed: {'; '.join(repeated)}."
        tables.append(Table(dataset, ["variant", "codes", "n", *_bits(lengths)], lines, note))
        tables += published_tables(dataset)
    return tables


def published_tables(dataset: str) -> list[Table]:
    """The published results for a dataset: a list of one table, or of none."""
    rows = read_csv(PUBLISHED, PUBLISHED_FIELDS)
    rows = rows[rows["dataset"] == dataset]
    if rows.empty:
        return []
    lengths = sorted(rows["code_length"].unique(), key=int)
    lines = []
    keys = ["method", "network", "protocol", "source"]
    for (method, network, protocol, source), own in rows.groupby(keys, sort=False):  # in the order of the file
        maps = dict(zip(own["code_length"], own["map"], strict=True))
        lines.append([method, network, protocol, *(maps.get(bits, "") for bits in lengths), source])
    title = f"{dataset}: published, not measured here"
    return [Table(title, ["method", "network", "protocol", *_bits(lengths), "source"], lines, "")]


def _bits(lengths: Iterable[int | str]) -> list[str]:
    return [f"{bits} bits" for bits in lengths]


def mean_and_deviation(values: pd.Series) -> str:
    """Numbers as "0.9781 ± 0.0057"; a single one has no deviation, and none gives ""."""
    count = values.count()
    return (f"{values.mean():.4f}" if count else "") + (f" ± {values.std():.4f}" if count > 1 else "")


def remarks(runs: pd.DataFrame) -> str:
    """Sentences with the flags that all runs share, and with every device and torch version."""
    shared = [f"All runs have {flags}." for flags in sorted(set(runs["shared"])) if flags]
    return " ".join([*shared, f"Hardware: {'; '.join(sorted(set(runs['device'] + ', torch ' + runs['torch'])))}."])


def _repeated(runs: pd.DataFrame) -> list[str]:
    """The runs after the first one of the same variant, code length and seed, in words."""
    again = runs[runs.duplicated(["dataset", *VARIANT, "code_length", "seed"])]
    return [f"{run.variant}, {run.code_length} bits, seed {run.seed}" for run in again.itertuples()]


def comparison(runs: pd.DataFrame, wanted: Sequence[str] | None, database: str) -> Table:
    """Paired differences over the seeds that two variants share, for each code length that both have, and for all.

    Args:
        runs: of `as_runs`.
        wanted: two variants, the second minus the first; None: each variant minus the one of its method that has some
            of its settings and no others, and main_tomm minus main_mmasia where their settings are the same.
        database: which mAP, one of `DATABASES`.

    Raises:
        UserError: an unknown variant, nothing to compare, or two runs of the same seed.
    """
    names = ", ".join(f"'{name}'" for name in sorted(set(runs["variant"])))
    for name in wanted or []:
        if name not in set(runs["variant"]):
            raise UserError(f"--variants: there is no '{name}'; there are {names}.")
    if repeated := _repeated(runs):
        raise UserError(f"More than one run of the same seed: {repeated[0]}; name folders that have only one of them.")
    column = f"{database}_expected"
    lines = []
    for dataset, here in runs.dropna(subset=column).groupby("dataset"):
        maps = here.pivot(index=["code_length", "seed"], columns="variant", values=column)
        lengths = maps.index.get_level_values("code_length")
        pairs = _default_pairs(here) if wanted is None else [wanted] if set(wanted) <= set(maps) else []
        for first, second in pairs:
            a, b = maps[first], maps[second]
            shared = a.notna() & b.notna()
            common = {*lengths[a.notna()]} & {*lengths[b.notna()]}
            parts = {str(bits): shared & (lengths == bits) for bits in sorted(common)}
            if lengths[shared].nunique() > 1:
                parts["all"] = shared
            for bits_text, chosen in parts.items():
                result = paired(a[chosen], b[chosen])
                lines.append([dataset, f"{second} − {first}", bits_text, *map(str, result)])
    if not lines:
        raise UserError(
            f"--compare: nothing to compare by {database} codes among {names}; name two variants with --variants, or "
            "other codes with --codes."
        )
    header = ["dataset", "difference", "bits", "n", "mean ± sd", "paired t-test p", "Wilcoxon p", "least Wilcoxon p"]
    note = f"mAP of the {database} codes, expected over ties, paired by seed; two-sided p, each test on its own."
    if any(line[2] == "all" for line in lines):
        note += " Pairs of one seed at several code lengths share their split: the p of 'all' is rather too small."
    return Table("", header, lines, note)


def _default_pairs(runs: pd.DataFrame) -> list[Sequence[str]]:
    """Of each variant and the one that it is a change of; and main_mmasia with main_tomm where all else is alike."""
    variants = [(run, json.loads(run.settings or "{}")) for run in runs.drop_duplicates(VARIANT).itertuples()]
    variants.sort(key=lambda variant: (variant[0].method, len(variant[1]), variant[0].variant))
    methods = [
        (first.variant, second.variant)
        for first, its in variants
        for second, other in variants
        if (first.method, second.method) == ("main_mmasia", "main_tomm")
        and (first.iterations, first.topk, its) == (second.iterations, second.topk, other)
    ]
    changes = []
    for run, own in variants:
        bases = [
            base.variant
            for base, its in variants
            if base.method == run.method and (base.topk == run.topk or "topk" in own) and its.items() < own.items()
        ]
        changes += [(base, run.variant) for base in bases[:1]]  # the one with the fewest settings of its own
    return [*methods, *changes]


def _write_csv(path: Path, rows: pd.DataFrame, flag: str) -> None:
    text = rows.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    write_file(path, lambda file: file.write(text.encode()), flag)


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line."""
    return run_command(COMMAND, lambda: _print_tables(arguments))


def _print_tables(arguments: Sequence[str]) -> None:
    parser = Parser(prog=COMMAND, description=COMMANDS["tables"], allow_abbrev=False)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE",
        help="folder with runs at any depth, or a CSV of runs; FOLDER CSV: same as FOLDER -o CSV",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the collected rows to this file")
    parser.add_argument(
        "--curves", type=Path, metavar="CSV", help="add the mAP by iteration of the folders to this file"
    )
    parser.add_argument("--latex", action="store_true", help="LaTeX (package booktabs) instead of Markdown")
    parser.add_argument(
        "--layout", choices=("wide", "long"), default="wide",
        help="wide: variants × code lengths; long: a line for each, with seeds and seconds [wide]",
    )  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="paired differences instead of means")
    parser.add_argument(
        "--variants", nargs=2, metavar="NAME", help="--compare: two names from the tables, the second minus the first"
    )
    parser.add_argument("--codes", choices=DATABASES, default="learned", help="--compare: which mAP [learned]")
    options = parser.parse_args(arguments)
    sources, output = options.sources, options.output
    if output is None and len(sources) == 2 and sources[0].is_dir() and sources[1].suffix == ".csv":
        sources, output = sources[:1], sources[1]
    if options.variants and not options.compare:
        raise UserError("--variants: names what --compare compares; add --compare.")
    for path, flag in ((output, "--output"), (options.curves, "--curves")):
        if path is not None:
            require_place(path, flag)
    rows = collect(sources)
    if output is not None:
        _write_csv(output, rows, "--output")
    if options.curves is not None:
        found = curves([source for source in sources if source.is_dir()])
        _write_csv(options.curves, add_curves(options.curves, found), "--curves")
    runs = as_runs(rows)
    if options.compare:
        tables = [comparison(runs, options.variants, options.codes)]
    else:
        tables = [long_table(runs)] if options.layout == "long" else wide_tables(runs)
    print("\n\n".join(table.latex() if options.latex else table.markdown() for table in tables))
