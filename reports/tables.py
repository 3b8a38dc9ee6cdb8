"""`python -m reports tables SOURCE...`: finished runs as a CSV, tables and comparisons (docs/tables.md)."""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reports.rendering import Table
from reports.significance import paired
from training.settings import differing_settings, flag_of
from utils.command import Parser, run_command
from utils.errors import UserError
from utils.files import require_place, write_file
from utils.runs import DATABASES, FAILURE, RESULTS, read_config, read_results

COMMAND = "python -m reports tables"
DESCRIPTION = "Collect finished runs in a CSV, print tables and comparisons."

MAPS = [f"{database}_{ties}" for database in DATABASES for ties in ("expected", "stable")]
FIELDS = [
    *("method", "dataset", "code_length", "seed", "iterations", "topk", *MAPS, "best", "best_iteration", "seconds"),
    *("settings", "commit", "torch", "device", "command"),
]
# A method that learns no database codes leaves these cells empty.
MAY_BE_EMPTY = {name for name in MAPS if not name.startswith("network")}
NUMBERS = ["code_length", "seed", "iterations", "topk", "seconds", "map", *MAPS]
PUBLISHED = Path(__file__).parents[1] / "results" / "published.csv"
PUBLISHED_FIELDS = ["method", "dataset", "code_length", "map", "network", "protocol", "source"]

Row = dict[str, str]


class Variant(NamedTuple):
    """What rows of one mean have in common, besides dataset and code length."""

    method: str
    settings: str  # compact JSON of what differs from the preset, "" for nothing
    iterations: int
    topk: int


def variant_of(row: Row) -> Variant:
    """The variant of a row of the CSV."""
    return Variant(row["method"], row["settings"], int(row["iterations"]), int(row["topk"]))


def labels(rows: list[Row]) -> dict[Variant, str]:
    """The name of each variant: the method and the flags that give it, as in "main_tomm --lr 0.001".

    A CSV from before the column `settings` does not say what differed. There, iterations and topk are added to names
    that would be the same otherwise.
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
        flags += [flag_of(field)] if value is True else [flag_of(field), str(value)]
    return flags


# ---- Collecting rows ----


def gather(folder: Path) -> list[Row]:
    """One row for each finished code length of all runs in `folder`, at any depth.

    Raises:
        UserError: a file of a run is missing or damaged.
    """
    rows = []
    for path in sorted(folder.rglob(RESULTS)):
        config = read_config(path.parent)
        try:
            rows += [_row(result, config) for result in read_results(path.parent)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not the results of a run ({type(error).__name__}: {error}); restore the file."
            ) from error
    return rows


def _row(result: dict[str, Any], config: dict[str, Any]) -> Row:
    commit = config["commit"] or {"hash": "unknown", "dirty": False}
    differing = differing_settings(config["settings"])
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
        "settings": json.dumps(differing, sort_keys=True, separators=(",", ":")) if differing else "",
        "commit": commit["hash"][:10] + ("+" if commit["dirty"] else ""),
        "torch": config["versions"]["torch"],
        "device": config["device"],
        "command": config["command"],
    }
    return {field: str(value) for field, value in row.items()}


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write the rows, with the columns `FIELDS`.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, lambda file: file.write(text.getvalue().encode()), "--output")


def read_csv(path: Path, fields: Sequence[str] = FIELDS) -> list[Row]:
    """The rows of a CSV; the column `settings` is empty in a CSV that does not have it.

    Raises:
        UserError: the file cannot be read, a column is missing, or a cell does not hold the number that it should.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{"settings": "", **row} if "settings" in fields else row for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); name a folder or a CSV of runs.") from error
    for field in fields:
        if field not in (reader.fieldnames or []) and field != "settings":
            raise UserError(f"{path}: has no column '{field}'; name a folder, or a CSV that this command wrote.")
    for number, row in enumerate(rows, 1):
        if None in row.values():
            raise UserError(f"{path}: row {number} is damaged (fewer cells than the header); restore the file.")
        try:
            for field in NUMBERS:
                if field in row and (row[field] or field not in MAY_BE_EMPTY):
                    float(row[field])
            json.loads(row.get("settings") or "{}")
        except ValueError as error:
            raise UserError(f"{path}: row {number} is damaged ({error}); restore the file.") from error
    return rows


def collect(sources: Sequence[Path]) -> list[Row]:
    """The rows of all sources, folders and CSV files, sorted; a row that several sources have is kept once.

    Runs that have failed are named on stderr.

    Raises:
        UserError: a source does not exist, or there is no finished run.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f"{source}: there is no such folder or CSV file.")
        found = gather(source) if source.is_dir() else read_csv(source)
        rows |= {tuple(row[field] for field in FIELDS): row for row in found}
        for path in sorted(source.rglob(FAILURE)) if source.is_dir() else []:
            if not path.with_name(RESULTS).exists():
                print(f"{COMMAND}: {path.parent}: this run has failed; the tables leave it out.", file=sys.stderr)
    if not rows:
        raise UserError(
            f"{', '.join(map(str, sources))}: there is no finished run; wait for one or name other folders."
        )
    return sorted(
        rows.values(),
        key=lambda row: (row["dataset"], row["method"], row["settings"], int(row["code_length"]), int(row["seed"])),
    )


# ---- Tables ----


def long_table(rows: list[Row]) -> Table:
    """Mean ± standard deviation (n − 1) of the expected mAP over seeds, a line for each variant and code length."""
    variants = {variant_of(row) for row in rows}
    groups = defaultdict(list)
    for row in rows:
        variant = variant_of(row)
        groups[row["dataset"], variant.method, variant.settings, int(row["code_length"]), variant[2:]].append(row)
    lines = []
    for (dataset, _, _, bits, _), cells in sorted(groups.items()):
        variant = variant_of(cells[0])
        name = " ".join([variant.method, *_flags(variant.settings)])  # the iterations have their own column
        if len({other.topk for other in variants if other[:3] == variant[:3]}) > 1:
            name += f" (topk {variant.topk})"
        means = [mean_and_deviation(cells, database) for database in DATABASES]
        seeds = ", ".join(cell["seed"] for cell in cells)
        seconds = statistics.median(float(cell["seconds"]) for cell in cells)
        lines.append(
            [dataset, name, str(bits), str(variant.iterations), f"{len(cells)} ({seeds})", *means, f"{seconds:.0f}"]
        )
    header = ["dataset", "method", "bits", "iterations", "n (seeds)", "learned", "learned, filled", "network"]
    return Table("", [*header, "seconds (median)"], lines, hardware(rows))


def wide_tables(rows: list[Row]) -> list[Table]:
    """For each dataset a table, variants and their codes × code lengths, and a table of published results."""
    names, tables = labels(rows), []
    for dataset in sorted({row["dataset"] for row in rows}):
        here = [row for row in rows if row["dataset"] == dataset]
        lengths = sorted({int(row["code_length"]) for row in here})
        lines = []
        for variant in sorted({variant_of(row) for row in here}):
            own = [row for row in here if variant_of(row) == variant]
            by_length = [[row for row in own if int(row["code_length"]) == bits] for bits in lengths]
            most = max(map(len, by_length))
            for database in DATABASES:
                means = [mean_and_deviation(cells, database) for cells in by_length]
                if not any(means):
                    continue  # the method learns no database codes
                for place, cells in enumerate(by_length):
                    if 0 < len(cells) < most:
                        means[place] += f" (n = {len(cells)})"
                lines.append([names[variant], database, str(most), *means])
        cuts = sorted({int(row["topk"]) for row in here})
        cut = " or ".join("over the whole database" if topk <= 0 else f"at {topk}" for topk in cuts)
        note = f"mAP {cut}, expected over ties; mean ± standard deviation over n seeds. {hardware(here)}"
        if repeated := sorted(_repeated(here)):
            note += f" More than one run of the same seed: {'; '.join(repeated)}."
        tables.append(Table(dataset, ["variant", "codes", "n", *_bits(lengths)], lines, note))
        tables += published_tables(dataset)
    return tables


def published_tables(dataset: str) -> list[Table]:
    """The published results for a dataset: a list of one table, or of none."""
    rows = [row for row in read_csv(PUBLISHED, PUBLISHED_FIELDS) if row["dataset"] == dataset]
    if not rows:
        return []
    lengths = sorted({int(row["code_length"]) for row in rows})
    groups: dict[tuple[str, ...], dict[int, str]] = {}  # in the order of the file
    for row in rows:
        key = tuple(row[field] for field in ("method", "network", "protocol", "source"))
        groups.setdefault(key, {})[int(row["code_length"])] = row["map"]
    lines = [
        [method, network, protocol, *(maps.get(bits, "") for bits in lengths), source]
        for (method, network, protocol, source), maps in groups.items()
    ]
    title = f"{dataset}: published, not measured here"
    return [Table(title, ["method", "network", "protocol", *_bits(lengths), "source"], lines, "")]


def _bits(lengths: list[int]) -> list[str]:
    return [f"{bits} bits" for bits in lengths]


def mean_and_deviation(cells: list[Row], database: str) -> str:
    """The expected mAP as "0.9781 ± 0.0057"; one run has no deviation, and no run gives ""."""
    values = [float(cell[f"{database}_expected"]) for cell in cells if cell[f"{database}_expected"]]
    if not values:
        return ""
    return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def hardware(rows: list[Row]) -> str:
    """A sentence with every device and torch version."""
    machines = sorted({f"{row['device']}, torch {row['torch']}" for row in rows})
    return f"Hardware: {'; '.join(machines)}."


def _repeated(rows: list[Row]) -> list[str]:
    """The cells that have more than one run, in words."""
    names, seen, repeated = labels(rows), set(), []
    for row in rows:
        key = (row["dataset"], variant_of(row), row["code_length"], row["seed"])
        if key in seen:
            repeated.append(f"{names[key[1]]}, {row['code_length']} bits, seed {row['seed']}")
        seen.add(key)
    return repeated


# ---- Comparisons ----


def comparison(rows: list[Row], wanted: Sequence[str] | None, database: str) -> Table:
    """Paired differences over the seeds that two variants share, for each code length and for all of them together.

    Args:
        rows: of any datasets.
        wanted: the names of two variants, the second minus the first; None: each variant minus its method with the
            preset's settings, and main_tomm minus main_mmasia, both with the preset's settings.
        database: which mAP, one of `DATABASES`.

    Raises:
        UserError: an unknown variant, nothing to compare, or two runs of the same seed.
    """
    names, lines = labels(rows), []
    if wanted is not None and (unknown := [name for name in wanted if name not in names.values()]):
        raise UserError(f"--variants: there is no '{unknown[0]}'; there are {_listed(names.values())}.")
    if repeated := _repeated(rows):
        raise UserError(f"More than one run of the same seed: {repeated[0]}; name folders that have only one of them.")
    for dataset in sorted({row["dataset"] for row in rows}):
        maps: dict[Variant, dict[tuple[int, int], float]] = defaultdict(dict)
        for row in rows:
            if row["dataset"] == dataset and row[f"{database}_expected"]:
                key = int(row["code_length"]), int(row["seed"])
                maps[variant_of(row)][key] = float(row[f"{database}_expected"])
        by_name = {names[variant]: variant for variant in maps}
        if wanted is None:
            pairs = _default_pairs(list(maps))
        else:
            pairs = [(by_name[wanted[0]], by_name[wanted[1]])] if by_name.keys() >= set(wanted) else []
        for first, second in pairs:
            shared = sorted(maps[first].keys() & maps[second].keys())
            lengths = sorted({bits for bits, _ in [*maps[first], *maps[second]]})
            parts = [(str(bits), [key for key in shared if key[0] == bits]) for bits in lengths]
            if len({bits for bits, _ in shared}) > 1:
                parts.append(("all", shared))
            for bits_text, keys in parts:
                result = paired([maps[first][key] for key in keys], [maps[second][key] for key in keys])
                title = f"{names[second]} − {names[first]}"
                tests = [result.difference, result.t_test, result.wilcoxon, result.least]
                lines.append([dataset, title, bits_text, str(result.n), *tests])
    if not lines:
        raise UserError(
            f"--compare: nothing to compare by {database} codes among {_listed(names.values())}; name two "
            "variants with --variants, or other codes with --codes."
        )
    header = ["dataset", "difference", "bits", "n", "mean ± sd", "paired t-test p", "Wilcoxon p", "least Wilcoxon p"]
    note = f"mAP of the {database} codes, expected over ties, paired by seed; two-sided p, each test on its own."
    if any(line[2] == "all" for line in lines):
        note += " Pairs of one seed at several code lengths share their split: the p of 'all' is rather too small."
    return Table("", header, lines, note)


def _default_pairs(variants: list[Variant]) -> list[tuple[Variant, Variant]]:
    presets = [variant for variant in variants if not variant.settings]
    methods = [
        (first, second)
        for first in presets
        for second in presets
        if (first.method, second.method) == ("main_mmasia", "main_tomm") and first[2:] == second[2:]
    ]
    ablations = [
        (preset, variant)
        for variant in sorted(variants)
        for preset in presets
        if variant.settings
        and preset.method == variant.method
        and (preset.topk == variant.topk or '"topk"' in variant.settings)
    ]
    return methods + ablations


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(set(names)))


# ---- Command ----


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE",
        help="folder with runs at any depth, or a CSV of runs; FOLDER CSV: same as FOLDER -o CSV",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the collected rows to this file")
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
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line; returns the exit status (`utils.command.run_command`)."""
    return run_command(COMMAND, lambda: _print_tables(arguments))


def _print_tables(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    sources, output = options.sources, options.output
    if output is None and len(sources) == 2 and sources[0].is_dir() and sources[1].suffix == ".csv":
        sources, output = sources[:1], sources[1]
    if options.variants and not options.compare:
        raise UserError("--variants: names what --compare compares; add --compare.")
    if output is not None:
        require_place(output, "--output")
    rows = collect(sources)
    if output is not None:
        write_csv(output, rows)
    if options.compare:
        tables = [comparison(rows, options.variants, options.codes)]
    else:
        tables = [long_table(rows)] if options.layout == "long" else wide_tables(rows)
    print("\n\n".join(table.latex() if options.latex else table.markdown() for table in tables))
