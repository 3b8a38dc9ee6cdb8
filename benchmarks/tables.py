"""Tables from runs: gather `results.json` of finished runs into a CSV, and print its means as Markdown.

python -m benchmarks.tables logs/digits results/digits.csv     # gather every run below logs/digits, then print
python -m benchmarks.tables results/digits.csv                 # print a committed CSV again
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

DATABASES = ("learned", "learned_filled", "network")
FIELDS = (
    ["method", "dataset", "code_length", "seed", "iterations", "topk"]
    + [f"{database}_{ties}" for database in DATABASES for ties in ("expected", "stable")]
    + ["best", "best_iteration", "seconds", "commit", "torch", "device", "command"]
)


def gather(folder: Path) -> list[dict[str, str]]:
    """A row a finished code length of every run below `folder`, sorted by dataset, method, bits and seed."""
    rows = []
    for path in folder.rglob("results.json"):
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        commit = config["commit"] or {"hash": "unknown", "dirty": False}
        for result in json.loads(path.read_text(encoding="utf-8")):
            row = {field: result[field] for field in FIELDS[:6]}
            for database in DATABASES:
                for ties in ("expected", "stable"):
                    row[f"{database}_{ties}"] = f"{result['map'][database][ties]:.6f}"
            row |= {
                "best": f"{result['best']['expected']:.6f}",
                "best_iteration": result["best"]["iteration"],
                "seconds": f"{result['seconds']:.0f}",
                "commit": commit["hash"][:10] + ("+" if commit["dirty"] else ""),
                "torch": config["versions"]["torch"],
                "device": config["device"],
                "command": config["command"],
            }
            rows.append({field: str(value) for field, value in row.items()})
    return sorted(rows, key=lambda r: (r["dataset"], r["method"], int(r["code_length"]), int(r["seed"])))


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(rows: list[dict[str, str]]) -> str:
    """Mean ± standard deviation (n − 1) of the expected mAP over seeds, a line a method and code length."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["dataset"], row["method"], int(row["code_length"]), int(row["iterations"])].append(row)
    lines = [
        "| dataset | method | bits | iterations | n (seeds) | learned | learned, filled | network | seconds (median) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, method, bits, iterations), cells in sorted(groups.items()):
        figures = [
            mean_and_deviation([float(cell[f"{database}_expected"]) for cell in cells]) for database in DATABASES
        ]
        seeds = ", ".join(cell["seed"] for cell in cells)
        seconds = statistics.median(float(cell["seconds"]) for cell in cells)
        lines.append(
            f"| {dataset} | {method} | {bits} | {iterations} | {len(cells)} ({seeds}) "
            f"| {' | '.join(figures)} | {seconds:.0f} |"
        )
    hardware = sorted({f"{row['device']}, torch {row['torch']}" for row in rows})
    return "\n".join(lines) + f"\n\nHardware: {'; '.join(hardware)}."


def mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    source = Path(arguments[0])
    if not source.exists():
        print(f"benchmarks.tables: {source}: there is no such folder or CSV file.", file=sys.stderr)
        return 2
    rows = read_csv(source) if source.suffix == ".csv" else gather(source)
    if not rows:
        print(f"benchmarks.tables: {source}: no finished run is there.", file=sys.stderr)
        return 2
    if len(arguments) == 2:
        write_csv(Path(arguments[1]), rows)
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
