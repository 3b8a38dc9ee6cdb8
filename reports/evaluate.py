"""`python -m reports evaluate`: re-evaluate saved codes, ours or another project's (docs/evaluation.md)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils.devices import choose_device
from utils.errors import UserError
from utils.evaluate import evaluate_codes, mean_average_precision
from utils.runs import CodeSet, find_code_sets, load_code_set, read_results


def order_sensitivity(tensors: Sequence[torch.Tensor], *, topk: int | None, device: Any = None) -> dict[str, float]:
    """Stable mAP with the database as given, reversed, and sorted by each item's first label (no label: last)."""
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
    code_set: CodeSet, *, topk: int | None, device: Any = None, with_orders: bool = False
) -> dict[str, Any]:
    """The report of one set of files: `evaluate_codes`' dict with "name", "code_length", "queries" and "database"
    before it; behind it "order_sensitivity" if asked for, and "run", what the run's results.json says, if there is one.

    Raises:
        UserError: files that cannot be read or do not fit together.
    """
    tensors = load_code_set(code_set)
    try:
        figures = evaluate_codes(*tensors, topk=topk, device=device)
        report = {
            "name": code_set.name,
            "code_length": tensors[0].shape[1],
            "queries": len(tensors[0]),
            "database": len(tensors[1]),
            **figures,
        }
        if with_orders:
            report["order_sensitivity"] = order_sensitivity(tensors, topk=topk, device=device)
    except ValueError as error:
        raise UserError(f"{code_set.folder / code_set.name}: {error}") from error
    for row in read_results(code_set.folder):
        if row["code_length"] == report["code_length"]:
            report["run"] = {key: row[key] for key in ("map", "best", "topk") if key in row}
    return report


def table(reports: Sequence[dict[str, Any]]) -> str:
    """The reports in words: a column a set of files, a line a figure."""
    lines: list[tuple[str, list[str]]] = [
        ("code length", [str(report["code_length"]) for report in reports]),
        ("queries", [f"{report['queries']:,}" for report in reports]),
        ("  without a relevant item", [f"{report['queries_without_relevant']:,}" for report in reports]),
        ("database", [f"{report['database']:,}" for report in reports]),
        ("  never encoded (all zero)", [f"{report['zero_rows']:,}" for report in reports]),
        ("R", ["all" if report["topk"] is None else f"{report['topk']:,}" for report in reports]),
    ]

    def figure(title: str, *keys: Any) -> None:
        values: list[Any] = []
        for report in reports:
            value: Any = report
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(value)
        if any(value is not None for value in values):
            lines.append((title, ["" if value is None else f"{value:.4f}" for value in values]))

    figure("mAP@R, expected over ties", "map", "expected")
    figure("mAP@R, ties in database order", "map", "stable")
    figure("  database as given", "order_sensitivity", "given")
    figure("  database reversed", "order_sensitivity", "reversed")
    figure("  database sorted by class", "order_sensitivity", "class_sorted")
    for n in (1, 10, 100, 1000):
        figure(f"precision@{n}", "precision_at", n)
    figure("recall@1000", "recall_at", 1000)
    figure("NDCG@100", "ndcg_at", 100)
    figure("precision within radius 2", "radius_2", "precision")
    figure("recall within radius 2", "radius_2", "recall")
    figure("  share of empty balls", "radius_2", "empty_share")
    figure("the run's last mAP, expected", "run", "map", "learned", "expected")
    figure("the run's best mAP, expected", "run", "best", "expected")
    title_width = max(len(title) for title, _ in lines)
    width = max(len(cell) for _, cells in lines for cell in cells)
    return "\n".join(
        f"{title:<{title_width}}" + "".join(f"  {cell:>{width}}" for cell in cells) for title, cells in lines
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reports evaluate", description="Re-evaluate saved codes.")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a run's folder, or the four .t files of each set"
    )
    parser.add_argument(
        "--topk", type=int, help="R of mAP@R; 0 or less: the whole database (default: as the run, else all)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures there, a list with an object a set"
    )
    parser.add_argument(
        "--order-sensitivity", action="store_true", help="stable mAP under three orders of the database"
    )
    parser.add_argument("--figures", action="store_true", help="draw the curves, beside the files")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, or 2 for what the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        device = choose_device(options.device)
        code_sets = find_code_sets(options.paths)
        reports = [
            evaluate_set(
                code_set, topk=_topk(options.topk, code_set), device=device, with_orders=options.order_sensitivity
            )
            for code_set in code_sets
        ]
        reports.sort(key=lambda report: report["code_length"])
        print(table(reports))
        if options.json is not None:
            _write_json(options.json, reports)
        if options.figures:
            _draw(code_sets[0].folder, reports)
    except UserError as error:
        print(f"python -m reports evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def _topk(asked: int | None, code_set: CodeSet) -> int | None:
    """--topk if given; else that of the run beside the files, so that its own figures come out again."""
    rows = [] if asked is not None else read_results(code_set.folder)
    return rows[0]["topk"] if rows else asked


def _write_json(path: Path, reports: list[dict[str, Any]]) -> None:
    try:
        path.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}); name another file.") from error


def _draw(folder: Path, reports: list[dict[str, Any]]) -> None:
    try:
        from reports.figures import evaluation_figures
    except ImportError as error:
        raise UserError(f"--figures: {error}; install matplotlib (requirements.txt).") from error
    for path in evaluation_figures(folder, reports):
        print(path)
