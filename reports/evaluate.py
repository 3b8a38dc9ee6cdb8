"""`python -m reports evaluate`: evaluate saved codes, ours or those of another project (docs/evaluation.md)."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from plots.curves import cutoff_figure, precision_recall_figure
from reports import COMMANDS
from reports.code_files import CodeFile, CodeSet, find_code_sets, load_code_set
from utils.command import Parser, bounded, run_command
from utils.devices import choose_device
from utils.errors import UserError
from utils.evaluate import DENOMINATORS, WITHOUT_RELEVANT, evaluate_codes, mean_average_precision
from utils.evaluation_input import checked
from utils.files import require_place, write_json
from utils.hamming import Matrices
from utils.log import log
from utils.runs import ROLES, read_results

COMMAND = "python -m reports evaluate"

FLAGS = dict(zip(("--query-codes", "--database-codes", "--query-labels", "--database-labels"), ROLES, strict=True))

# The rows of the printed table: the title and the keys of the report. A row without any value is left out.
_ROWS: tuple[tuple[str, tuple[str | int, ...]], ...] = (
    ("code length", ("code_length",)),
    ("queries", ("queries",)),
    ("  without a relevant item", ("queries_without_relevant",)),
    ("database", ("database",)),
    ("  never encoded (all zero)", ("zero_rows",)),
    ("R", ("topk",)),
    ("AP divided by the relevant items that are", ("denominator",)),
    ("queries without a relevant item count as", ("without_relevant",)),
    ("mAP@R, expected over ties", ("map", "expected")),
    ("mAP@R, ties in database order", ("map", "stable")),
    ("  database as given", ("order_sensitivity", "given")),
    ("  database reversed", ("order_sensitivity", "reversed")),
    ("  database sorted by class", ("order_sensitivity", "class_sorted")),
    *((f"precision@{n}", ("precision_at", n)) for n in (1, 10, 100, 1000)),
    ("recall@1000", ("recall_at", 1000)),
    ("NDCG@100", ("ndcg_at", 100)),
    ("precision within radius 2", ("radius_2", "precision")),
    ("recall within radius 2", ("radius_2", "recall")),
    ("  share of queries without any item", ("radius_2", "empty_share")),
    ("last mAP of the run, expected", ("run", "map", "learned", "expected")),
    ("last mAP of the run, network's codes", ("run", "map", "network", "expected")),
    ("best mAP of the run, expected", ("run", "best", "expected")),
)


def order_sensitivity(
    matrices: Matrices, *, topk: int | None, device: torch.device | None = None, **convention: Any
) -> dict[str, float]:
    """Stable mAP of `checked` matrices in three orders of the database: "given", "reversed", "class_sorted".

    The last one sorts by the first label of each item; items without a label come last. `convention`: `denominator` and
    `without_relevant` of `mean_average_precision`.
    """
    first = matrices.database_labels
    if first.ndim == 2:
        first = torch.where(first.any(1), (first != 0).int().argmax(1), first.shape[1])
    orders = {
        "given": torch.arange(len(first)),
        "reversed": torch.arange(len(first)).flip(0),
        "class_sorted": torch.argsort(first, stable=True),
    }
    return {
        name: mean_average_precision(
            matrices.query_code, matrices.database_code[order], matrices.query_labels, matrices.database_labels[order],
            device, topk, ties="stable", **convention,
        )
        for name, order in orders.items()
    }  # fmt: skip


def evaluate_set(
    code_set: CodeSet,
    *,
    topk: int | None,
    device: torch.device | None = None,
    with_orders: bool = False,
    **convention: Any,
) -> dict[str, Any]:
    """All metrics of one set of code files: `evaluate_codes`, and `order_sensitivity` if asked for.

    `convention`: `denominator` and `without_relevant` of `evaluate_codes`. "queries" and "database" are their numbers;
    "run" is the "map", "best" and "topk" of results.json, if there is one. Codes and labels that had to be converted
    are named in the log.

    Raises:
        UserError: a file cannot be read, or the files do not fit together.
    """
    tensors = load_code_set(code_set)
    where = code_set.folder / code_set.name
    try:
        with warnings.catch_warnings(record=True) as conversions:
            warnings.simplefilter("always")
            matrices = checked(*tensors)
        for conversion in conversions:
            log.warning("%s: %s", where, conversion.message)
        report = {
            "name": code_set.name,
            "code_length": matrices.query_code.shape[1],
            "queries": len(matrices.query_code),
            "database": len(matrices.database_code),
            **evaluate_codes(*matrices, topk=topk, device=device, **convention),
        }
        if with_orders:
            report["order_sensitivity"] = order_sensitivity(matrices, topk=topk, device=device, **convention)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    for row in read_results(code_set.folder):
        if row["code_length"] == report["code_length"]:
            report["run"] = {key: row[key] for key in ("map", "best", "topk") if key in row}
    return report


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """A table to print: a column for each report of `evaluate_set`, a line for each metric."""
    lines = [[title, *(_cell(report, keys) for report in reports)] for title, keys in _ROWS]
    return tabulate(
        [line for line in lines if any(line[1:])], tablefmt="plain", disable_numparse=True, preserve_whitespace=True,
        colalign=["left", *["right"] * len(reports)],
    )  # fmt: skip


def _cell(report: Mapping[str, Any], keys: Sequence[str | int]) -> str:
    value: Any = report
    for key in keys:
        value = value.get(key, {})
    if value is None:
        return "all"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, str):
        return value
    return "" if value == {} else f"{value:,}"


def by_name(reports: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The reports for `evaluation_figures`, by code length, or by the names of the files if a length occurs twice."""
    lengths = [report["code_length"] for report in reports]
    distinct = len(set(lengths)) == len(lengths)
    return {f"{report['code_length']} bits" if distinct else report["name"]: [report] for report in reports}


def evaluation_figures(
    output: Path,
    reports: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    suffix: str = "",
    file_format: str = "png",
    title: str = "",
) -> list[Path]:
    """Write precision-recall and precision@N into `output`, and NDCG@N where all reports have it.

    Args:
        reports: of `evaluate_set`, by the name of the curve; several under one name are averaged.
        suffix: end of the file names, before the dot.

    Raises:
        UserError: no report, or a file cannot be written.
    """

    def curves(key: str) -> dict[str, list[Any]]:
        return {name: [seed[key] for seed in seeds] for name, seeds in reports.items()}

    averaged = any(len(seeds) > 1 for seeds in reports.values())
    mean, spread = (f"{title}, {what} over seeds" if averaged else title for what in ("mean", "mean ± std"))
    end = f"{suffix}.{file_format}"
    written = [
        precision_recall_figure(output / f"precision-recall{end}", curves("precision_recall"), mean),
        cutoff_figure(output / f"precision-at-n{end}", curves("precision_at"), "precision@N", spread),
    ]
    if all("ndcg_at" in seed for seeds in reports.values() for seed in seeds):
        written.append(cutoff_figure(output / f"ndcg-at-n{end}", curves("ndcg_at"), "NDCG@N", spread))
    return written


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line."""
    return run_command(COMMAND, lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str]) -> None:
    parser = Parser(prog=COMMAND, description=COMMANDS["evaluate"])
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="folder of a run, or the four files of each set of codes"
    )
    files = parser.add_argument_group("or files with any names (.t, .npy, .npz, .mat)")
    for flag, role in FLAGS.items():
        files.add_argument(flag, type=CodeFile.parse, metavar="FILE[:ARRAY]", dest=role)
    parser.add_argument(
        "--topk", type=bounded(int), help="R of mAP@R; 0 or less: the whole database [as in the run, else all]"
    )
    parser.add_argument(
        "--denominator", choices=DENOMINATORS, default=DENOMINATORS[0],
        help="what divides AP@R: the relevant items that are retrieved, among the first R, or all relevant [retrieved]",
    )  # fmt: skip
    parser.add_argument(
        "--without-relevant", choices=WITHOUT_RELEVANT, default=WITHOUT_RELEVANT[0],
        help="a query without a relevant item: zero, or skip to leave it out of all means [zero]",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all metrics to a JSON file")
    parser.add_argument(
        "--order-sensitivity", action="store_true", help="also the stable mAP in three orders of the database"
    )
    parser.add_argument(
        "--figures", action="store_true", help="draw the curves into the folder figures beside the files"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N [cpu]")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    if options.json is not None:
        require_place(options.json, "--json")
    code_sets = _code_sets(options)
    reports = [
        evaluate_set(
            code_set, topk=_topk(options.topk, code_set), device=device, with_orders=options.order_sensitivity,
            denominator=options.denominator, without_relevant=options.without_relevant,
        )
        for code_set in code_sets
    ]  # fmt: skip
    reports.sort(key=lambda report: report["code_length"])
    print(table(reports))
    if options.json is not None:
        write_json(options.json, reports, "--json")
    if options.figures:
        for path in evaluation_figures(code_sets[0].folder / "figures", by_name(reports)):
            print(path)


def _code_sets(options: argparse.Namespace) -> list[CodeSet]:
    """The sets of the PATHs, or the one set that the four flags name."""
    named = {role: getattr(options, role) for role in ROLES}
    given = [flag for flag, role in FLAGS.items() if named[role] is not None]
    if not given and not options.paths:
        raise UserError(f"name the folder of a run, or files of codes and labels ({COMMAND} --help lists the flags).")
    if given and (options.paths or len(given) < len(FLAGS)):
        raise UserError(f"{given[0]}: give {', '.join(FLAGS)} together, without other paths.")
    return [CodeSet(named[ROLES[0]].path.name, named)] if given else find_code_sets(options.paths)


def _topk(given: int | None, code_set: CodeSet) -> int | None:
    """--topk if given, else that of the run which saved the files, so that its own mAP comes out again."""
    rows = read_results(code_set.folder) if given is None else []
    return int(rows[0]["topk"]) if rows else given
