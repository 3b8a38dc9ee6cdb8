"""Tables from runs: gather finished runs into a CSV; print means, published figures and comparisons (docs/tables.md).

python -m reports tables logs/digits -o results/digits.csv         # gather every run below logs/digits, then print
python -m reports tables results/digits.csv logs/ablations         # a committed CSV and a folder in one table
python -m reports tables results/digits.csv --compare              # paired differences between variants
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from reports.rendering import Table
from reports.significance import paired
from training.settings import METHODS, differing_settings
from utils.errors import UserError
from utils.runs import DATABASES, FAILURE, RESULTS, read_config, read_results

OUTCOMES = [f"{database}_{ties}" for database in DATABASES for ties in ("expected", "stable")]
FIELDS = [
    *("method", "dataset", "code_length", "seed", "iterations", "topk", *OUTCOMES, "best", "best_iteration", "seconds"),
    *("settings", "commit", "torch", "device", "command"),
]
PUBLISHED = Path(__file__).parents[1] / "results" / "published.csv"
PUBLISHED_FIELDS = ["method", "dataset", "code_length", "map", "network", "protocol", "source"]

Row = dict[str, str]


class Variant(NamedTuple):
    """What a mean is taken over the seeds of, beside dataset and code length."""

    method: str
    settings: str  # compact JSON, "" for the preset's
    iterations: int
    topk: int


def variant_of(row: Row) -> Variant:
    """The variant that a row of the CSV belongs to."""
    return Variant(row["method"], row["settings"], int(row["iterations"]), int(row["topk"]))


def labels(rows: list[Row]) -> dict[Variant, str]:
    """A name a variant, as the flags that give it: "main_tomm --lr 0.001".

    Tables from before the column `settings` do not say what differed; there the iterations and the cut tell apart what
    would else bear one name.
    """
    variants = sorted({variant_of(row) for row in rows})
    names = {variant: " ".join([variant.method, *_flags(variant.settings)]) for variant in variants}
    for variant, name in names.copy().items():
        alike = [other for other in variants if other[:2] == variant[:2]]
        if len({other.iterations for other in alike}) > 1:
            names[variant] = name = f"{name} ({variant.iterations} iterations)"
        if len({other.topk for other in alike}) > 1:
            names[variant] = f"{name} (topk {variant.topk})"
    return names


def _flags(settings: str) -> list[str]:
    flags = []
    for field, value in sorted(json.loads(settings or "{}").items()):
        flags.append("--" + field.replace("_", "-"))
        if value is not True:
            flags.append(str(value))
    return flags


# ---- Gathering ----


def gather(folder: Path) -> list[Row]:
    """A row a finished code length of every run below `folder`, in the order of `in_order`.

    Raises:
        UserError: a run's files are missing or damaged.
    """
    rows = []
    for path in sorted(folder.rglob(RESULTS)):
        config = read_config(path.parent)
        try:
            rows += [_row(result, config) for result in read_results(path.parent)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the results of a run ({type(error).__name__}: {error}).") from error
    return in_order(rows)


def _row(result: dict[str, Any], config: dict[str, Any]) -> Row:
    commit = config["commit"] or {"hash": "unknown", "dirty": False}
    differing = differing_settings(config["settings"])
    row = {field: result[field] for field in FIELDS[:6]}
    for database in DATABASES:
        for ties in ("expected", "stable"):
            row[f"{database}_{ties}"] = f"{result['map'][database][ties]:.6f}"
    row |= {
        "best": f"{result['best']['expected']:.6f}",
        "best_iteration": result["best"]["iteration"],
        "seconds": f"{result['seconds']:.0f}",
        "settings": json.dumps(differing, sort_keys=True, separators=(",", ":")) if differing else "",
        "commit": commit["hash"][:10] + ("+" if commit["dirty"] else ""),
        "torch": config["versions"]["torch"],
        "device": config["device"],
        "command": config["command"],
    }
    return {field: str(value) for field, value in row.items()}


def in_order(rows: list[Row]) -> list[Row]:
    """Sorted by dataset, method, settings, bits and seed."""
    return sorted(rows, key=lambda r: (r["dataset"], r["method"], r["settings"], int(r["code_length"]), int(r["seed"])))


def unfinished(folder: Path) -> list[Path]:
    """The folders of the runs below `folder` that have failed and have no result."""
    return sorted(path.parent for path in folder.rglob(FAILURE) if not path.with_name(RESULTS).exists())


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write the rows under `FIELDS`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file.") from error


def read_csv(path: Path, fields: Sequence[str] = FIELDS) -> list[Row]:
    """The rows of a CSV; a table from before the column `settings` has it empty.

    Raises:
        UserError: it cannot be read, a column is missing, or a figure is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{"settings": "", **row} if "settings" in fields else row for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}).") from error
    numbers = [*OUTCOMES, "code_length", "seed", "iterations", "topk", "seconds", "map"]
    for field in fields:
        if field not in (reader.fieldnames or []) and field != "settings":
            raise UserError(f"{path}: has no column '{field}'; name a folder, or a CSV that this command wrote.")
    for number, row in enumerate(rows, 1):
        if None in row.values():
            raise UserError(f"{path}: row {number} is damaged (it has fewer cells than the header).")
        try:
            for field in numbers:
                if field in row:
                    float(row[field])
            json.loads(row.get("settings") or "{}")
        except ValueError as error:
            raise UserError(f"{path}: row {number} is damaged ({error}).") from error
    return rows


def collect(sources: Sequence[Path]) -> list[Row]:
    """The rows of all sources, folders and CSV files; a row that two of them hold is there once.

    Raises:
        UserError: a source does not exist, or none holds a finished run.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f"{source}: there is no such folder or CSV file.")
        found = gather(source) if source.is_dir() else read_csv(source)
        rows |= {tuple(row[field] for field in FIELDS): row for row in found}
        for folder in unfinished(source) if source.is_dir() else []:
            print(f"python -m reports tables: {folder}: failed, and is in no table.", file=sys.stderr)
    if not rows:
        raise UserError(f"{', '.join(map(str, sources))}: no finished run is there.")
    return in_order(list(rows.values()))


# ---- Tables ----


def long_table(rows: list[Row]) -> Table:
    """Mean ± standard deviation (n − 1) of the expected mAP over seeds, a line a variant and code length."""
    names = labels(rows)
    groups = defaultdict(list)
    for row in rows:
        variant = variant_of(row)
        groups[row["dataset"], variant.method, variant.settings, int(row["code_length"]), variant[2:]].append(row)
    lines = []
    for (dataset, _, _, bits, _), cells in sorted(groups.items()):
        variant = variant_of(cells[0])
        name = " ".join([variant.method, *_flags(variant.settings)])  # the iterations have a column of their own
        if len({other.topk for other in names if other[:3] == variant[:3]}) > 1:
            name += f" (topk {variant.topk})"
        figures = [mean_and_deviation(cells, database) for database in DATABASES]
        seeds = ", ".join(cell["seed"] for cell in cells)
        seconds = statistics.median(float(cell["seconds"]) for cell in cells)
        lines.append(
            [dataset, name, str(bits), str(variant.iterations), f"{len(cells)} ({seeds})", *figures, f"{seconds:.0f}"]
        )
    header = ["dataset", "method", "bits", "iterations", "n (seeds)", "learned", "learned, filled", "network"]
    return Table("", [*header, "seconds (median)"], lines, hardware(rows))


def wide_tables(rows: list[Row]) -> list[Table]:
    """A table a dataset, variants and kinds of database codes × code lengths; behind it what others published."""
    names, tables = labels(rows), []
    for dataset in sorted({row["dataset"] for row in rows}):
        here = [row for row in rows if row["dataset"] == dataset]
        lengths = sorted({int(row["code_length"]) for row in here})
        lines = []
        for variant in sorted({variant_of(row) for row in here}):
            cells = {
                bits: [row for row in here if variant_of(row) == variant and int(row["code_length"]) == bits]
                for bits in lengths
            }
            most = max(map(len, cells.values()))
            for database in DATABASES:
                figures = [mean_and_deviation(cells[bits], database) for bits in lengths]
                for place, bits in enumerate(lengths):
                    if 0 < len(cells[bits]) < most:
                        figures[place] += f" (n = {len(cells[bits])})"
                lines.append([names[variant], database, str(most), *figures])
        cuts = sorted({int(row["topk"]) for row in here})
        cut = " or ".join("over the whole database" if topk <= 0 else f"at {topk}" for topk in cuts)
        note = f"mAP {cut}, expected over ties; mean ± standard deviation over n seeds. {hardware(here)}"
        if repeated := sorted(_repeated(here)):
            note += f" More than one run of the same seed: {'; '.join(repeated)}."
        tables.append(Table(dataset, ["variant", "codes", "n", *_bits(lengths)], lines, note))
        tables += published_tables(dataset)
    return tables


def published_tables(dataset: str) -> list[Table]:
    """The published figures for a dataset, a list of one table or none."""
    rows = [row for row in read_csv(PUBLISHED, PUBLISHED_FIELDS) if row["dataset"] == dataset]
    if not rows:
        return []
    lengths = sorted({int(row["code_length"]) for row in rows})
    groups: dict[tuple[str, ...], dict[int, str]] = {}  # in the file's order
    for row in rows:
        key = tuple(row[field] for field in ("method", "network", "protocol", "source"))
        groups.setdefault(key, {})[int(row["code_length"])] = row["map"]
    lines = [
        [method, network, protocol, *(figures.get(bits, "") for bits in lengths), source]
        for (method, network, protocol, source), figures in groups.items()
    ]
    title = f"{dataset}: published, not measured here"
    return [Table(title, ["method", "network", "protocol", *_bits(lengths), "source"], lines, "")]


def _bits(lengths: list[int]) -> list[str]:
    return [f"{bits} bits" for bits in lengths]


def mean_and_deviation(cells: list[Row], database: str) -> str:
    """ "0.9781 ± 0.0057" of the expected mAP; without a deviation of one run, empty of none."""
    values = [float(cell[f"{database}_expected"]) for cell in cells]
    if not values:
        return ""
    return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def hardware(rows: list[Row]) -> str:
    """A sentence that names every device and torch version."""
    machines = sorted({f"{row['device']}, torch {row['torch']}" for row in rows})
    return f"Hardware: {'; '.join(machines)}."


# ---- Comparisons ----


def _repeated(rows: list[Row]) -> list[str]:
    names, seen, repeated = labels(rows), set(), []
    for row in rows:
        key = (row["dataset"], variant_of(row), row["code_length"], row["seed"])
        if key in seen:
            repeated.append(f"{names[key[1]]}, {row['code_length']} bits, seed {row['seed']}")
        seen.add(key)
    return repeated


def comparison(rows: list[Row], wanted: Sequence[str] | None, database: str) -> Table:
    """Paired differences over the seeds that two variants share, by code length and over all code lengths.

    Args:
        rows: of any datasets.
        wanted: the names of two variants, the second minus the first; None: every ablation minus its method with the
            preset's settings, and main_tomm minus main_mmasia, both with the preset's.
        database: of `DATABASES`.

    Raises:
        UserError: no such variant, nothing to compare, or two runs of one seed.
    """
    names, lines = labels(rows), []
    if wanted is not None and (unknown := [name for name in wanted if name not in names.values()]):
        raise UserError(f"--variants: there is no '{unknown[0]}'; there are {_listed(names.values())}.")
    if repeated := _repeated(rows):
        raise UserError(f"More than one run of the same seed: {repeated[0]}; name folders that hold one of them.")
    for dataset in sorted({row["dataset"] for row in rows}):
        figures: dict[Variant, dict[tuple[int, int], float]] = defaultdict(dict)
        for row in rows:
            if row["dataset"] == dataset:
                key = int(row["code_length"]), int(row["seed"])
                figures[variant_of(row)][key] = float(row[f"{database}_expected"])
        by_name = {names[variant]: variant for variant in figures}
        if wanted is None:
            pairs = _default_pairs(list(figures))
        else:
            pairs = [(by_name[wanted[0]], by_name[wanted[1]])] if by_name.keys() >= set(wanted) else []
        for first, second in pairs:
            shared = sorted(figures[first].keys() & figures[second].keys())
            lengths = sorted({bits for bits, _ in [*figures[first], *figures[second]]})
            parts = [(str(bits), [key for key in shared if key[0] == bits]) for bits in lengths]
            parts += [("all", shared)] if len({bits for bits, _ in shared}) > 1 else []
            for bits_text, keys in parts:
                result = paired([figures[first][key] for key in keys], [figures[second][key] for key in keys])
                lines.append(
                    [dataset, f"{names[second]} − {names[first]}", bits_text, str(result.n), result.difference,
                     result.t_test, result.wilcoxon, result.least]
                )  # fmt: skip
    if not lines:
        raise UserError(f"--compare: nothing to compare among {_listed(names.values())}; name two with --variants.")
    header = ["dataset", "difference", "bits", "n", "mean ± sd", "paired t-test p", "Wilcoxon p", "least Wilcoxon p"]
    note = f"mAP of the {database} codes, expected over ties, paired by seed; two-sided p, each test on its own."
    if any(line[2] == "all" for line in lines):
        note += " Pairs of one seed at several code lengths share their split: the p of 'all' is rather too small."
    return Table("", header, lines, note)


def _default_pairs(variants: list[Variant]) -> list[tuple[Variant, Variant]]:
    presets = {method: [v for v in variants if v.method == method and not v.settings] for method in METHODS}
    pairs = [
        (preset, variant)
        for variant in sorted(variants)
        for preset in presets.get(variant.method, [])
        if variant.settings and (preset.topk == variant.topk or '"topk"' in variant.settings)
    ]
    first, second = (presets[method] for method in METHODS)
    return [(a, b) for a in first for b in second if a[2:] == b[2:]] + pairs


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in sorted(set(names)))


# ---- Command ----


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (python -m reports tables --help lists the flags)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m reports tables", description="Tables from runs.", allow_abbrev=False)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="a folder with runs, or a CSV of them")
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the gathered rows there")
    parser.add_argument("--latex", action="store_true", help="LaTeX (package booktabs) instead of Markdown")
    parser.add_argument(
        "--layout", choices=("wide", "long"), default="wide",
        help="wide: variants × code lengths; long: a line each, with seeds and seconds (default: wide)",
    )  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="paired differences instead of means")
    parser.add_argument(
        "--variants", nargs=2, metavar="NAME", help="--compare: these two, named as in the tables, second minus first"
    )
    parser.add_argument(
        "--codes", choices=DATABASES, default="learned", help="--compare: of which codes (default: learned)"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line; returns the exit status: 0, or 2 for what the user can mend."""
    try:
        options = _parser().parse_args(arguments)
        sources, output = options.sources, options.output
        if output is None and len(sources) == 2 and sources[0].is_dir() and sources[1].suffix == ".csv":
            sources, output = sources[:1], sources[1]  # `tables FOLDER CSV` writes the CSV
        if options.variants and not options.compare:
            raise UserError("--variants: names what --compare compares; add --compare.")
        rows = collect(sources)
        if output is not None:
            write_csv(output, rows)
        if options.compare:
            tables = [comparison(rows, options.variants, options.codes)]
        else:
            tables = [long_table(rows)] if options.layout == "long" else wide_tables(rows)
        print("\n\n".join(table.latex() if options.latex else table.markdown() for table in tables))
    except UserError as error:
        print(f"python -m reports tables: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
