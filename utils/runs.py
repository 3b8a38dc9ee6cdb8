"""The folder of a run: the names of its files, and the only code that reads them (docs/runs.md).

`training.run_folder` writes them. Training (resume, sweeps), search (models) and reports all read run folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.files import fits, load_tensors, read_json

CONFIG, METRICS, RESULTS, FAILURE = "config.json", "metrics.jsonl", "results.json", "failed.json"
ROLES = ("query_code", "database_code", "query_targets", "database_targets")
# The database codes that results.json evaluates. A symmetric method learns no codes: its rows have "network" alone.
DATABASES = ("learned", "learned_filled", "network")


def code_set_name(dataset: str, code_length: int, database_map: float) -> str:
    """What the names of the four code files of a code length share; the file of a role is `<name>-<role>.t`."""
    return f"{dataset}-{code_length}bits-{database_map:.4f}"


def model_file(folder: Path, code_length: int) -> Path:
    """Where the state dict of the trained image network is."""
    return folder / f"model_image-{code_length}bits.pt"


def checkpoint_file(folder: Path, code_length: int, iteration: int) -> Path:
    """The checkpoint after `iteration` iterations."""
    return folder / f"checkpoint-{code_length}bits-{iteration:06d}.pt"


def model_files(folder: Path) -> dict[int, Path]:
    """The model files of a folder by code length, ascending."""
    pattern = re.compile(r"model_image-(\d+)bits\.pt")
    found = {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    return dict(sorted(found.items()))


def choose_model(folder: Path, code_length: int | None) -> tuple[int, Path]:
    """The code length and the model file that are meant; None: the only one there.

    Raises:
        UserError: there is none, or there are several to choose from.
    """
    found = model_files(folder)
    listed = ", ".join(map(str, found))
    if not found:
        raise UserError(f"{folder}: has no model_image-*bits.pt; wait until the run has finished a code length.")
    if code_length is None and len(found) > 1:
        raise UserError(f"{folder}: has models of {listed} bits; choose one with --code-length.")
    chosen = next(iter(found)) if code_length is None else code_length
    if chosen not in found:
        raise UserError(f"--code-length {chosen}: {folder} has no such model; it has {listed} bits.")
    return chosen, found[chosen]


def checkpoints(folder: Path, code_length: int | None = None) -> list[tuple[int, Path]]:
    """(iteration, file) of the checkpoints of a folder, by code length and iteration; None: of all code lengths."""
    pattern = re.compile(r"checkpoint-(\d+)bits-(\d+)\.pt")
    found = [(path, match) for path in folder.glob("checkpoint-*.pt") if (match := pattern.fullmatch(path.name))]
    keyed = sorted((int(match[1]), int(match[2]), path) for path, match in found)
    return [(iteration, path) for bits, iteration, path in keyed if code_length in (None, bits)]


def is_run(folder: Path) -> bool:
    """Whether `folder` has a config.json."""
    return (folder / CONFIG).exists()


# The types of what is read; older runs have fewer entries.
_NUMBER = int | float
_CONFIG: dict[str, Any] = {
    "settings": {
        **dict.fromkeys(("method", "dataset", "backbone", "root"), str),
        **dict.fromkeys(("seed", "topk", "max_iter", "image_size"), int),
        "code_length": list,
        "lr": _NUMBER,
        "preset": str | None,
    },
    "versions": dict,
    "commit": dict | None,
    "command": str,
    "device": str,
    "data": str,
    "resumed": list,
}
_RESULT: dict[str, Any] = {
    **dict.fromkeys(("method", "dataset"), str),
    **dict.fromkeys(("code_length", "seed", "iterations", "topk", "never_drawn", "queries_without_relevant"), int),
    "seconds": _NUMBER,
    "map": {kind: {"expected": _NUMBER, "stable": _NUMBER} for kind in DATABASES},
    "best": {"iteration": int, "expected": _NUMBER},
    "selected": {"iteration": int, "validation": _NUMBER},
}
_ITERATION: dict[str, Any] = {
    **dict.fromkeys(("code_length", "iteration"), int),
    **dict.fromkeys(("distinct", "map", "validation_map", "seconds"), _NUMBER),
    "loss": dict,
    "bit_mean": list,
}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with the settings under "settings"; a UserError if there are none or an entry has a wrong type."""
    path = folder / CONFIG
    config: dict[str, Any] = read_json(path, dict)
    if "settings" not in config or not fits(config["settings"], dict):
        raise UserError(f"{path}: holds no settings of a run; name the folder of a run.")
    for part, kinds in ((config["settings"], _CONFIG["settings"]), (config, _CONFIG)):
        for name, kind in kinds.items():
            if name in part and not fits(part[name], kind):
                raise UserError(f"{path}: '{name}' is {part[name]!r}, which no run writes; restore the file.")
    return config


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.json, one for each finished code length; empty where there is no such file.

    Each has row["map"]["network"], and the other `DATABASES` where the method learns database codes. A damaged file is
    a UserError.
    """
    path = folder / RESULTS
    rows: list[dict[str, Any]] = read_json(path, list) if path.exists() else []
    for row in rows:
        complete = fits(row, _RESULT) and {"code_length", "topk", "map"} <= row.keys()
        found = row["map"] if complete else {}
        if "network" not in found or not all("expected" in found[kind] for kind in DATABASES if kind in found):
            raise UserError(f"{path}: not the results of a run; restore the file.")
    return rows


def has_result(rows: Sequence[Mapping[str, Any]], code_length: int, iterations: int) -> bool:
    """Whether `read_results` has the row of a code length after so many iterations; older rows do not say how many."""
    return any(row["code_length"] == code_length and row.get("iterations", iterations) >= iterations for row in rows)


def read_failure(folder: Path) -> str | None:
    """The message of failed.json; None where the run has not failed."""
    path = folder / FAILURE
    return str(read_json(path, dict).get("message")) if path.exists() else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, one for each iteration; a last line that is not complete is left out.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / METRICS
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the folder of a run.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        row = _iteration(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):  # else it is being written, or a kill or a full disk has cut it
            raise UserError(f"{path}: line {number} is not an iteration of a run; remove it.")
    return rows


def _iteration(line: bytes) -> dict[str, Any] | None:
    """The row in a line of metrics.jsonl; None where it holds none."""
    try:
        row: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    needed = {"code_length", "iteration", "distinct", "loss", "bit_mean"}
    if not fits(row, _ITERATION) or not needed <= row.keys():
        return None
    return row if all(fits(value, _NUMBER) for value in (*row["loss"].values(), *row["bit_mean"])) else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint on the CPU, tensors and plain containers; a UserError if it is no checkpoint.

    It has "iteration", "codes" (int8 [n, K] or None), "parts" (state dicts by name), "generator" and "generators_cuda"
    (a state of torch's generators for each process), and in newer ones "data" and "row" (`training.checkpoint`).
    """
    from torch import Tensor  # the other functions need no torch

    try:
        state = load_tensors(path, "a checkpoint")
    except UserError as error:
        raise UserError(f"{error} Remove it to resume from an earlier checkpoint.") from error
    kinds: dict[str, Any] = {"iteration": int, "codes": Tensor | None, "parts": dict, "generator": list}
    kinds |= {"generators_cuda": list, "data": str | None, "row": dict | None}
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path}: not a checkpoint of a run; remove it to resume from an earlier checkpoint.")
    return state


class Run(NamedTuple):
    """A run that has finished at least one code length: settings of config.json, rows of results.json."""

    folder: Path
    settings: dict[str, Any]
    results: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Read the folder of a run; a UserError if no code length is finished or a file is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder of a run.")
    settings = read_config(folder)["settings"]
    if not {"method", "dataset", "seed"} <= settings.keys():
        raise UserError(f"{folder / CONFIG}: holds no settings of a run; name the folder of a run.")
    if not (results := read_results(folder)):
        raise UserError(f"{folder}: {RESULTS} has no finished code length; wait until the run has finished.")
    return Run(folder, settings, results)
