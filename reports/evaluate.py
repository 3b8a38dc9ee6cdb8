"""`python -m reports evaluate`: evaluate saved codes, ours or those of another project (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from plots.curves import cutoff_figure, precision_recall_figure
from utils.command import Parser, bounded, run_command
from utils.devices import choose_device
from utils.errors import UserError
from utils.evaluate import evaluate_codes, mean_average_precision
from utils.files import require_place, write_json
from utils.runs import CodeSet, find_code_sets, load_code_set, read_results

COMMAND = "python -m reports evaluate"
DESCRIPTION = "Evaluate saved codes: of a run, or of another project."

# The rows of the printed table: the title and the keys of the report. A row without any value is left out.
_ROWS: tuple[tuple[str, tuple[str | int, ...]], ...] = (
    ("code length", ("code_length",)),
    ("queries", ("queries",)),
    ("  without a relevant item", ("queries_without_relevant",)),
    ("database", ("database",)),
    ("  never encoded (all zero)", ("zero_rows",)),
    ("R", ("topk",)),
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
    tensors: Sequence[torch.Tensor], *, topk: int | None, device: torch.device | None = None
) -> dict[str, float]:
    """Stable mAP of `load_code_set` in three orders of the database: "given", "reversed", "class_sorted".

    The last one sorts by the first label of each item; items without a label come last.
    """
    query_code, database_code, query_labels, database_labels = tensors
    first = torch.where(database_labels.any(1), (database_labels != 0).int().argmax(1), database_labels.shape[1])
    orders = {
        "given": torch.arange(len(database_code)),
        "reversed": torch.arange(len(database_code)).flip(0),
        "class_sorted": torch.argsort(first, stable=True),
    }
    return {
        name: mean_average_precision(
            query_code, database_code[order], query_labels, database_labels[order], device, topk, ties="stable"
        )
        for name, order in orders.items()
    }


def evaluate_set(
    code_set: CodeSet, *, topk: int | None, device: torch.device | None = None, with_orders: bool = False
) -> dict[str, Any]:
    """All metrics of one set of code files: `evaluate_codes`, and `order_sensitivity` if asked for.

    "queries" and "database" are their numbers; "run" is the "map", "best" and "topk" of results.json, if there is one.

    Raises:
        UserError: a file cannot be read, or the files do not fit together.
    """
    tensors = load_code_set(code_set)
    try:
        metrics = evaluate_codes(*tensors, topk=topk, device=device)  # checks the shapes
        report = {
            "name": code_set.name,
            "code_length": tensors[0].shape[1],
            "queries": len(tensors[0]),
            "database": len(tensors[1]),
            **metrics,
        }
        if with_orders:
            report["order_sensitivity"] = order_sensitivity(tensors, topk=topk, device=device)
    except ValueError as error:
        raise UserError(f"{code_set.folder / code_set.name}: {error}") from error
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
    parser = Parser(prog=COMMAND, description=DESCRIPTION)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="folder of a run, or the four .t files of each set of codes"
    )
    parser.add_argument(
        "--topk", type=bounded(int), help="R of mAP@R; 0 or less: the whole database [as in the run, else all]"
    )
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
    code_sets = find_code_sets(options.paths)
    reports = [
        evaluate_set(code_set, topk=_topk(options.topk, code_set), device=device, with_orders=options.order_sensitivity)
        for code_set in code_sets
    ]
    reports.sort(key=lambda report: report["code_length"])
    print(table(reports))
    if options.json is not None:
        write_json(options.json, reports, "--json")
    if options.figures:
        for path in evaluation_figures(code_sets[0].folder / "figures", by_name(reports)):
            print(path)


def _topk(given: int | None, code_set: CodeSet) -> int | None:
    """--topk if given, else that of the run which saved the files, so that its own mAP comes out again."""
    rows = read_results(code_set.folder) if given is None else []
    return int(rows[0]["topk"]) if rows else given
