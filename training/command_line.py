"""The command line of run.py: a new run, a run to resume, or a sweep."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.settings import (
    ALL_METHODS,
    BOTH,
    COUNT,
    FREE_TO_CHANGE,
    METHODS,
    SEED,
    Settings,
    name,
    numbers,
    one_of,
    shown,
)
from utils.command import Parser, flag_of
from utils.errors import UserError
from utils.runs import CONFIG, is_run, read_config


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep: every method with every seed and every code length."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    name: str | None  # the sweep's folder in --logs; None: made of the settings
    dry_run: bool  # only list the cells
    jobs: int = 1  # cells that run at once


@dataclass(frozen=True)
class Command:
    """What a command line asks for."""

    settings: Settings  # of the run; of a sweep what its cells share, with the method and the seed of the first
    folder: Path | None = None  # to resume (--resume), or to create or resume (--cell); None: a new one
    cell: bool = False  # the run is a cell of a sweep
    grid: Grid | None = None  # of a sweep; None: one run


def parser(method_name: str, preset: Settings | None = None) -> argparse.ArgumentParser:
    """The command line of `Settings`, in groups; a flag that is not given leaves no entry in the namespace.

    The help shows the defaults of `preset`; None: those of the default dataset.
    """
    preset = preset or Settings.for_dataset(Settings.dataset)
    result = Parser(
        prog="run.py",
        description="Train and evaluate Semantically Cycle-consistent Hashing Networks.",
        epilog=f"The defaults in brackets are those of --dataset {preset.dataset}; for those of another dataset give "
        "--dataset NAME --help. A flag always wins.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=118),
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        parse, text, heading = (field.metadata[key] for key in ("parse", "help", "group"))
        if heading not in groups:
            groups[heading] = result.add_argument_group(heading)
        if parse is None:
            groups[heading].add_argument(flag_of(field.name), action="store_true", help=text)
            continue
        choices = () if callable(parse) else parse
        default = method_name if field.name == "method" else getattr(preset, field.name)
        groups[heading].add_argument(
            flag_of(field.name),
            type=parse if callable(parse) else one_of(parse),
            metavar="NAME" if choices else _METAVARS.get(field.name, "VALUE"),
            help=(f"{{{','.join(choices)}}} " if choices else "")
            + text
            + ("" if default is None else f" [{shown(default)}]"),
        )
    groups["What to run"].add_argument(
        "--resume", type=name, metavar="DIR",
        help="resume the run in this folder, with its own settings; with --max-iter N train it longer",
    )  # fmt: skip
    sweeps = result.add_argument_group("Sweeps (docs/runs.md): --seeds, --sweep or --method both runs a grid of cells")
    sweeps.add_argument(
        "--seeds", type=numbers(SEED), metavar="S,S,…", help="seeds; each runs with every method and every code length"
    )
    sweeps.add_argument(
        "--sweep", type=_folder_name, metavar="NAME", help="the sweep's folder in --logs [made of the settings]"
    )
    sweeps.add_argument(
        "--cell", type=name, metavar="DIR", help="the run's folder, created or resumed; a sweep starts its cells so"
    )
    sweeps.add_argument(
        "--jobs", type=COUNT, metavar="N", help="cells that run at once, each with its share of the threads [1]"
    )
    sweeps.add_argument("--dry-run", action="store_true", help="only list the cells of a sweep and their state")
    return result


_METAVARS = {
    "method": "NAME",
    "dataset": "NAME",
    "code_length": "K,K,…",
    "milestones": "N,N,…",
    "root": "DIR",
    "logs": "DIR",
}


def _folder_name(text: str) -> str:
    if not text or text in (".", "..") or "/" in text or "\\" in text:
        raise argparse.ArgumentTypeError(f"'{text}' is not the plain name of a folder")
    return text


def _preset_of(arguments: Sequence[str]) -> Settings:
    """The settings that --dataset and --preset give, without any other flag."""
    few = Parser(prog="run.py", add_help=False, allow_abbrev=False)
    few.add_argument("--dataset", default=Settings.dataset)
    few.add_argument("--preset")
    given, _ = few.parse_known_args(arguments)
    return Settings.for_dataset(given.dataset, preset=given.preset)


def parse_command(arguments: Sequence[str], *, method_name: str) -> Command:
    """What the command line asks for; `method_name` is the default of --method, edited at the top of run.py.

    Raises:
        UserError: an unknown flag, a bad value, flags that contradict each other or would change a resumed run.
    """
    given = vars(parser(method_name, _preset_of(arguments)).parse_args(arguments))
    resume, cell, dry_run = given.pop("resume", None), given.pop("cell", None), given.pop("dry_run", False)
    seeds, sweep, jobs = given.pop("seeds", None), given.pop("sweep", None), given.pop("jobs", None)
    asked = given.get("method", method_name)
    names = METHODS if asked == BOTH else tuple(asked.split(","))
    is_sweep = seeds is not None or sweep is not None or len(names) > 1
    if jobs is not None and not is_sweep:
        raise UserError(f"--jobs {jobs} runs the cells of a sweep at once; add --seeds, --sweep or --method both.")
    for flag, folder in (("--resume", resume), ("--cell", cell)):
        if folder is not None and (is_sweep or dry_run or None not in (resume, cell)):
            raise UserError(
                f"{flag} {folder}: this is one run; leave out --seeds, --sweep, --method both, --dry-run and any other "
                "folder. A sweep resumes when its own command is given again."
            )
    if dry_run and not is_sweep:
        raise UserError("--dry-run lists the cells of a sweep; add --seeds, --sweep or --method both.")
    if seeds is not None and "seed" in given:
        raise UserError("--seed and --seeds: give one of the two.")
    if resume is not None:
        return Command(resumed_settings(Path(resume), given), Path(resume))
    if cell is not None and is_run(Path(cell)):
        return Command(resumed_settings(Path(cell), given), Path(cell), cell=True)
    if method_name not in ALL_METHODS:
        known = ", ".join(ALL_METHODS)
        raise UserError(f"method_name in run.py is '{method_name}'; it must be one of {known}.")
    given["method"] = names[0]
    if seeds is not None:
        given["seed"] = seeds[0]
    settings = Settings.for_dataset(given.pop("dataset", Settings.dataset), **given)
    for method in names:
        require_fitting(dataclasses.replace(settings, method=method))
    if is_sweep:
        return Command(settings, grid=Grid(names, seeds or (settings.seed,), sweep, dry_run, jobs or 1))
    return Command(settings, None if cell is None else Path(cell), cell=cell is not None)


# Settings that only some methods use, and these methods.
USED_BY = (
    (("fresh_batches", "no_discriminator", "milestones"), ("main_tomm",)),
    (("margin",), ("orthohash",)),
    (("alpha", "beta", "gamma"), METHODS),
    (("latent", "similarity", "adjacency", "update_all_rows", "detach_targets", "no_cycle_terms"), METHODS),
)


def require_fitting(settings: Settings) -> None:
    """UserError where the method has no use for a setting."""
    preset = settings.own_preset()
    for fields, owners in USED_BY:
        if settings.method in owners:
            continue
        for field in fields:
            if getattr(settings, field) != getattr(preset, field):
                raise UserError(
                    f"{flag_of(field)}: {settings.method} has nothing that it changes; it is a flag of "
                    f"{' and '.join(owners)}."
                )


# Their loss depends on the share of --max-iter that is done.
WHOLE_SCHEDULE = ("hashnet",)


def resumed_settings(folder: Path, given: dict[str, Any]) -> Settings:
    """The settings of the run in `folder`, with those `given` flags that change no result, and a larger --max-iter.

    Raises:
        UserError: it is not the folder of a run, or a flag would change the results.
    """
    settings = Settings.from_json(read_config(folder)["settings"], folder / CONFIG)
    longer = given.get("max_iter", 0) > settings.max_iter
    if longer and settings.method in WHOLE_SCHEDULE:
        raise UserError(
            f"--resume {folder} --max-iter {given['max_iter']}: the loss of {settings.method} follows a schedule over "
            f"all {settings.max_iter} iterations, so that a longer run differs from the first one on; start a new run."
        )
    allowed = (*FREE_TO_CHANGE, *(("max_iter",) if longer else ()))
    differing = differences({field: value for field, value in given.items() if field not in allowed}, settings)
    if differing:
        raise UserError(
            f"--resume {folder}: these flags would change the results of the resumed run: {', '.join(differing)}; "
            "leave them out, or start a new run."
        )
    return dataclasses.replace(settings, **{field: given[field] for field in allowed if field in given})


def differences(wanted: dict[str, Any], settings: Settings) -> list[str]:
    """What a run has otherwise than `wanted`, as flags: "--lr 0.5 (the run has 0.1)"."""
    return [
        f"{flag_of(field)} {shown(value)} (the run has {shown(getattr(settings, field))})"
        for field, value in wanted.items()
        if value != getattr(settings, field)
    ]
