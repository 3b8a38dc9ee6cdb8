"""The one settings object: every option of a run, its presets and its command line.

A field's metadata holds all that the command line needs, so `Settings` is the single list of options: the flag is the
field's name with dashes, its help one line, its group a heading of `--help`. Precedence: a flag given by the user, then
the dataset's preset, then the default below (the release's settings).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data.transform import AUGMENTATIONS
from modules.backbones import BACKBONES

from .errors import UserError
from .json_files import read_json

METHODS = ("main_mmasia", "main_tomm")
BOTH = "both"  # what --method takes beside them: a sweep over both
OWN_IMAGES = ("folder", "lists")  # the datasets whose images are whatever lies below --root


def count(text: str) -> int:
    """A whole number above 0."""
    value = _number(int, text)
    if value <= 0:
        raise ValueError("is not a whole number above 0")
    return value


def count_or_zero(text: str) -> int:
    """A whole number, 0 or more."""
    value = _number(int, text)
    if value < 0:
        raise ValueError("is not a whole number of 0 or more")
    return value


def seed_number(text: str) -> int:
    """A seed: a whole number from 0 to 2**63 - 1."""
    value = _number(int, text)
    if not 0 <= value < 2**63:
        raise ValueError("is not a whole number from 0 to 2**63 - 1")
    return value


def whole(text: str) -> int:
    """Any whole number."""
    return _number(int, text)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(float, text)
    if not value > 0:
        raise ValueError("is not a number above 0")
    return value


def weight(text: str) -> float:
    """A finite number, 0 or more."""
    value = _number(float, text)
    if not value >= 0:
        raise ValueError("is not a number of 0 or more")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, comma-separated, none twice."""
    return _numbers(count, text)


def seed_numbers(text: str) -> tuple[int, ...]:
    """Seeds, comma-separated, none twice."""
    return _numbers(seed_number, text)


def _numbers(parse: Callable[[str], int], text: str) -> tuple[int, ...]:
    values = tuple(parse(part.strip()) for part in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError("names a number twice")
    return values


def folder_name(text: str) -> str:
    """The name of a folder, not a path to it."""
    if not text or text in (".", "..") or "/" in text or "\\" in text:
        raise ValueError("is not the plain name of a folder")
    return text


def share(text: str) -> float:
    """A number above 0 and below 1."""
    value = _number(float, text)
    if not 0 < value < 1:
        raise ValueError("is not a number above 0 and below 1")
    return value


def name(text: str) -> str:
    """Any non-empty text."""
    if not text:
        raise ValueError("is empty")
    return text


def _number(kind: Callable[[str], Any], text: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise ValueError("is not a whole number" if kind is int else "is not a number") from None
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


def option(
    default: Any, parse: Callable[[str], Any] | None, help: str, group: str, choices: Sequence[str] | None = None
) -> Any:
    """A field of `Settings`: its default and what the command line needs to know of it; no `parse`: a switch."""
    metadata = {"parse": parse, "help": help, "group": group, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every option of a run. `Settings.for_dataset` fills in a dataset's preset."""

    method: str = option("main_mmasia", name, "the variant to train; both: a sweep", "What to run", (*METHODS, BOTH))
    dataset: str = option("digits", name, "image collection; see docs/datasets.md", "What to run")
    root: str = option("dataset", name, "folder that holds the image collections", "What to run")
    code_length: tuple[int, ...] = option(
        (12, 24, 32, 48), counts, "bits a code; several are trained one after the other", "What to run"
    )
    seed: int = option(999, seed_number, "seed of the split, every draw and the initial weights", "What to run")
    device: str = option("auto", name, "auto (a GPU where there is one), cpu, cuda or cuda:N", "What to run")
    logs: str = option("logs", name, "folder in which the run's folder is made", "What to run")

    num_query: int | None = option(None, count, "query images (default: the dataset's protocol)", "Data")
    image_size: int = option(224, count, "side of the images that the network sees, in pixels", "Data")
    augment: str = option("crop-flip", name, "augmentation of the training images", "Data", tuple(AUGMENTATIONS))
    split: str | None = option(None, name, "flickr25k as its lists give it, not drawn by the seed", "Data", ("lists",))
    query_share: float | None = option(None, share, "folder: share of each class held out as queries", "Data")
    database_img: str | None = option(None, name, "lists: database images (database_img.txt)", "Data")
    database_label: str | None = option(None, name, "lists: database labels (database_label.txt)", "Data")
    query_img: str | None = option(None, name, "lists: query images (query_img.txt)", "Data")
    query_label: str | None = option(None, name, "lists: query labels (query_label.txt)", "Data")
    on_bad_image: str = option("error", name, "stop at an unreadable image, or leave it out", "Data", ("error", "skip"))
    check: bool = option(False, None, "look for images that are both query and database", "Data")
    cache: str = option("on", name, "decoded images in one file: on (beside the images), off, or a DIR", "Data")
    num_workers: int = option(0, count_or_zero, "threads that decode images; 0: one a processor", "Data")

    backbone: str = option("alexnet", name, "image network, through torchvision", "Network", BACKBONES)
    weights: str = option(
        "imagenet", name, "initial weights of the image network: imagenet, none or a state-dict FILE", "Network"
    )

    num_samples: int = option(5000, count, "database rows drawn each iteration", "Training")
    max_iter: int = option(50, count, "iterations: draw, train, discrete step", "Training")
    max_epoch: int = option(3, count, "passes over the drawn rows in an iteration", "Training")
    batch_size: int = option(64, count, "images a mini-batch", "Training")
    lr: float = option(4e-5, positive, "learning rate of Adam", "Training")
    weight_decay: float = option(1e-5, weight, "weight decay of Adam", "Training")
    alpha: float = option(2.0, weight, "weight of the label codes in the discrete step", "Training")
    beta: float = option(0.1, weight, "weight of the latent codes in the discrete step", "Training")
    gamma: float = option(10.0, weight, "weight of the quantisation terms", "Training")

    precision: str = option(
        "float32", name, "of the networks' passes; bfloat16 is faster", "Training", ("float32", "bfloat16")
    )

    latent: str = option("sigmoid", name, "activation of the latent code", "Ablations", ("sigmoid", "tanh"))
    similarity: str = option("binary", name, "target of dissimilar pairs: 0 or -K", "Ablations", ("binary", "signed"))
    adjacency: str = option("raw", name, "graph of the latent features", "Ablations", ("raw", "normalised"))
    fresh_batches: bool = option(False, None, "main_tomm shuffles and augments every pass afresh", "Ablations")
    update_all_rows: bool = option(False, None, "the discrete step updates the whole database", "Ablations")
    detach_targets: bool = option(False, None, "reconstructions do not pull at their targets", "Ablations")
    no_discriminator: bool = option(False, None, "main_tomm without its adversarial step", "Ablations")
    no_cycle_terms: bool = option(False, None, "the loss without its reconstruction terms", "Ablations")

    save_iter: int = option(10, count_or_zero, "iterations between two checkpoints; 0: none", "Training")

    eval_iter: int = option(10, count, "iterations between two evaluations", "Evaluation")
    validate: int = option(0, count_or_zero, "database images held out to select the iteration on", "Evaluation")
    topk: int = option(-1, whole, "cut of the mAP; 0 or less: the whole database", "Evaluation")

    figures: bool = option(False, None, "draw the run's figures into its folder at the end", "Evaluation")
    tensorboard: bool = option(False, None, "write TensorBoard events into the run's folder", "Evaluation")

    @classmethod
    def for_dataset(cls, dataset: str, **given: Any) -> Settings:
        """The release's settings, over them the preset of `dataset`, over that the `given` fields.

        Raises:
            UserError: a given field is unknown.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for field in given:
            if field not in known:
                close = difflib.get_close_matches(field, known, 1)
                raise UserError(f"Unknown setting '{field}'" + (f"; did you mean '{close[0]}'?" if close else "."))
        return cls(**{"dataset": dataset, **PRESETS.get(dataset, {}), **given})

    def as_json(self) -> dict[str, Any]:
        """Every field by name; tuples as lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def as_flags(self) -> list[str]:
        """The flags that give these settings: what tells a run from another, and what differs from the preset."""
        preset = Settings.for_dataset(self.dataset)
        flags: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == getattr(preset, field.name) and field.name not in IDENTITY:
                continue
            flag = "--" + field.name.replace("_", "-")
            if field.metadata["parse"] is None:
                flags.append(flag)
            else:
                text = _shown(value)
                flags += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
        return flags


IDENTITY = ("method", "dataset", "code_length", "seed")  # what tells the cells of a sweep from each other


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep: every method with every seed and every code length.

    Args:
        methods: of `METHODS`.
        seeds: one or more.
        name: the sweep's folder below --logs; None: one made of the settings.
        dry_run: only list the cells.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    name: str | None
    dry_run: bool


@dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Args:
        settings: of the run; of a sweep what its cells share, with the method and the seed of the first.
        folder: of a run: the one to go on with (--resume) or to make or go on with (--cell); None: a new one.
        cell: the run is a cell of a sweep.
        grid: of a sweep; None: one run.
    """

    settings: Settings
    folder: Path | None = None
    cell: bool = False
    grid: Grid | None = None


# What differs from the defaults above, which are the release's for CIFAR-10 (docs/datasets.md has the table).
PRESETS: dict[str, dict[str, Any]] = {
    "nus-wide-tc21": {"num_samples": 10500, "max_iter": 150, "topk": 5000},
    "nus-wide-tc10": {"num_samples": 10500, "max_iter": 150, "topk": 5000},
    "flickr25k": {"max_iter": 150, "topk": 5000},
    "imagenet": {"num_samples": 10500, "max_iter": 150, "topk": 1000},
    # Own images: 0 stands for as many rows as the release draws from CIFAR-10, or all where there are fewer (run.py).
    "folder": {"num_samples": 0},
    "lists": {"num_samples": 0},
    # Small images, no ImageNet weights and a higher rate: a random AlexNet learns the digits in minutes.
    "digits": {
        "num_samples": 1000,
        "max_iter": 9,
        "eval_iter": 3,
        "lr": 1e-4,
        "image_size": 64,
        "weights": "none",
        "augment": "none",
    },
}


# What a resumed run may change: where it reads, writes and computes, and how often it saves.
FREE_TO_CHANGE = ("root", "device", "logs", "cache", "check", "num_workers", "save_iter", "figures", "tensorboard")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (python run.py --help lists the flags)")


def parser(**defaults: Any) -> argparse.ArgumentParser:
    """The command line of `Settings`, grouped; a flag that is not given leaves no entry in the namespace.

    Args:
        defaults: fields whose shown default differs from the class's, such as `method` from run.py's `method_name`.
    """
    result = _Parser(
        prog="run.py",
        description="Train and evaluate Semantically Cycle-consistent Hashing Networks.",
        epilog="A dataset's preset replaces some defaults (docs/datasets.md); a flag given here always wins.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=118),
    )
    groups: dict[str, Any] = {"What to run": result.add_argument_group("What to run")}
    for field in dataclasses.fields(Settings):
        meta = field.metadata
        if meta["group"] not in groups:
            groups[meta["group"]] = result.add_argument_group(meta["group"])
        default = defaults.get(field.name, field.default)
        flag = "--" + field.name.replace("_", "-")
        if meta["parse"] is None:
            groups[meta["group"]].add_argument(
                flag, dest=field.name, action="store_true", default=argparse.SUPPRESS, help=meta["help"]
            )
            continue
        choices = f"{{{','.join(meta['choices'])}}} " if meta["choices"] else ""
        groups[meta["group"]].add_argument(
            flag,
            dest=field.name,
            type=_argument_type(meta["parse"], meta["choices"]),
            default=argparse.SUPPRESS,
            metavar=_metavar(field.name, meta["choices"]),
            help=f"{choices}{meta['help']}" + ("" if default is None else f" [{_shown(default)}]"),
        )
    groups["What to run"].add_argument(
        "--resume",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="go on with the run in this folder, under its own settings",
    )
    sweeps = result.add_argument_group("Sweeps (docs/runs.md): --seeds, --sweep or --method both runs a grid of cells")
    for flag, parse, metavar, text in (
        ("--seeds", seed_numbers, "S,S,…", "seeds; every one runs with every method and every code length"),
        ("--sweep", folder_name, "NAME", "the sweep's folder below --logs [made of the dataset and the settings]"),
        ("--cell", name, "DIR", "the run's folder, made or gone on with; a sweep starts its cells so"),
    ):
        sweeps.add_argument(
            flag, type=_argument_type(parse, None), default=argparse.SUPPRESS, metavar=metavar, help=text
        )
    sweeps.add_argument(
        "--dry-run", action="store_true", default=argparse.SUPPRESS, help="list a sweep's cells and their state only"
    )
    return result


def _metavar(field: str, choices: Sequence[str] | None) -> str:
    return {"code_length": "K,K,…", "root": "DIR", "logs": "DIR"}.get(field, "NAME" if choices else "VALUE")


def _argument_type(parse: Callable[[str], Any], choices: Sequence[str] | None) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"'{text}' {error}") from None
        if choices and value not in choices:
            close = difflib.get_close_matches(text, choices, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(choices)}{hint}")
        return value

    return convert


def parse_command(arguments: Sequence[str], *, method_name: str) -> Command:
    """What the command line asks for: a new run, one to go on with (`--resume`, `--cell`), or a sweep.

    Args:
        arguments: the command line without the program's name.
        method_name: default of `--method`, as edited at the top of run.py.

    Raises:
        UserError: an unknown flag, an ill-typed value, flags that contradict each other, or a flag that would make a
            resumed run another run.
    """
    given = vars(parser(method=method_name).parse_args(arguments))
    resume, cell, dry_run = given.pop("resume", None), given.pop("cell", None), given.pop("dry_run", False)
    seeds, sweep = given.pop("seeds", None), given.pop("sweep", None)
    is_sweep = seeds is not None or sweep is not None or given.get("method") == BOTH
    for flag, folder in (("--resume", resume), ("--cell", cell)):
        if folder is not None and (is_sweep or dry_run or None not in (resume, cell)):
            raise UserError(
                f"{flag} {folder}: this is one run; leave --seeds, --sweep, --method both, --dry-run and any other "
                "folder out. A sweep goes on when its own command is given again."
            )
    if dry_run and not is_sweep:
        raise UserError("--dry-run lists the cells of a sweep; add --seeds, --sweep or --method both.")
    if seeds is not None and "seed" in given:
        raise UserError("--seed and --seeds: give one of the two.")
    if resume is not None:
        return Command(resumed_settings(Path(resume), given), Path(resume))
    if cell is not None and (Path(cell) / "config.json").exists():
        return Command(resumed_settings(Path(cell), given), Path(cell), cell=True)
    if method_name not in METHODS:
        raise UserError(f"method_name in run.py is '{method_name}'; it must be one of {', '.join(METHODS)}.")
    given.setdefault("method", method_name)
    methods = METHODS if given["method"] == BOTH else (given["method"],)
    settings = Settings.for_dataset(
        given.pop("dataset", Settings.dataset), **given | {"method": methods[0]} | ({"seed": seeds[0]} if seeds else {})
    )
    for method in methods:
        require_fitting(dataclasses.replace(settings, method=method))
    if is_sweep:
        return Command(settings, grid=Grid(methods, seeds or (settings.seed,), sweep, dry_run))
    return Command(settings, None if cell is None else Path(cell), cell=cell is not None)


def require_fitting(settings: Settings) -> None:
    """Refuse an ablation that the variant has no place for."""
    for flag, asked in (("--fresh-batches", settings.fresh_batches), ("--no-discriminator", settings.no_discriminator)):
        if asked and settings.method == "main_mmasia":
            raise UserError(f"{flag}: main_mmasia has nothing of the kind to change; it is an ablation of main_tomm.")


def resumed_settings(folder: Path, given: dict[str, Any]) -> Settings:
    """The settings of the run in `folder`, with those `given` flags that change no result."""
    saved = read_json(folder / "config.json", dict).get("settings")
    if not isinstance(saved, dict):
        raise UserError(f"--resume {folder}: its config.json holds no settings; name the folder of a run.")
    saved = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    settings = Settings.for_dataset(**saved)
    differing = [
        f"--{field.replace('_', '-')} {_shown(value)} (the run has {_shown(getattr(settings, field))})"
        for field, value in given.items()
        if field not in FREE_TO_CHANGE and value != getattr(settings, field)
    ]
    if differing:
        raise UserError(
            f"--resume {folder}: these flags would make it another run: {', '.join(differing)}; "
            "leave them out, or start a new run."
        )
    return dataclasses.replace(settings, **{field: given[field] for field in FREE_TO_CHANGE if field in given})


def differing_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that make its figures others than the preset's, besides what `IDENTITY` names.

    Args:
        settings: as `Settings.as_json` gives them and config.json keeps them.
    """
    preset = Settings.for_dataset(settings["dataset"]).as_json()
    ignored = {*IDENTITY, *FREE_TO_CHANGE} - ({"root"} if settings["dataset"] in OWN_IMAGES else set())
    return {field: value for field, value in settings.items() if field not in ignored and value != preset.get(field)}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def data_options(settings: Settings) -> dict[str, Any]:
    """The settings that `data.load_data` takes as options; those left at None are the dataset's own business."""
    names = ["seed", "num_query", "image_size", "split", "on_bad_image", "check", "num_workers"]
    names += ["query_share", "database_img", "database_label", "query_img", "query_label"]
    options = {option_name: getattr(settings, option_name) for option_name in names}
    options["cache"] = {"on": True, "off": False}.get(settings.cache, settings.cache)
    return {option_name: value for option_name, value in options.items() if value is not None}
