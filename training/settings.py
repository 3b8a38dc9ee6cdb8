"""The settings of a run: every option with its default, and the presets of the datasets.

`Settings` is the only list of options. A field becomes a flag (its name with dashes), and the field's metadata holds
what the command line needs. Precedence: a flag, then the dataset's preset, then the default (the authors' release).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.options import Options
from utils.command import AUGMENTATIONS, BACKBONES, DATASETS, MOST_PIXELS, PROTOCOLS, bounded, flag_of
from utils.errors import UserError

METHODS = ("main_mmasia", "main_tomm")
BASELINES = ("adsh", "dpsh", "hashnet", "csq", "greedyhash", "orthohash")  # other methods on the same harness
ALL_METHODS = (*METHODS, *BASELINES)
BOTH = "both"  # a value of --method: a sweep over METHODS, without the baselines
OWN_IMAGES = ("folder", "lists")  # the datasets that consist of whatever is in --root

MANY = 10**9  # more than any count that can be meant
COUNT, COUNT_OR_ZERO, SEED = bounded(int, 1, MANY), bounded(int, 0, MANY), bounded(int, 0, 2**63 - 1)
BITS, PIXELS, THREADS = bounded(int, 1, 4096), bounded(int, 8, 4096), bounded(int, 0, 1024)
POSITIVE, WEIGHT, SHARE = bounded(float, 0, exclusive=True), bounded(float, 0), bounded(float, 0, 1, exclusive=True)


def numbers(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A `type` for `add_argument`: numbers separated by commas, none twice."""

    def parse_all(text: str) -> tuple[Any, ...]:
        values = tuple(parse(part.strip()) for part in text.split(","))
        if len(set(values)) != len(values):
            raise argparse.ArgumentTypeError(f"'{text}' names a number twice")
        return values

    return parse_all


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A `type` for `add_argument`: one of some names; the message suggests the closest one."""

    def parse(text: str) -> str:
        if text not in choices:
            close = difflib.get_close_matches(text, choices, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(choices)}{hint}")
        return text

    return parse


def name(text: str) -> str:
    """A `type` for `add_argument`: any text but the empty one."""
    if not text:
        raise argparse.ArgumentTypeError("'' is empty")
    return text


def methods(text: str) -> str:
    """A `type` for `add_argument`: a method, or several separated by commas, or `BOTH`."""
    parts = text.split(",")
    for part in parts:
        one_of((*ALL_METHODS, BOTH) if part == text else ALL_METHODS)(part)
    if len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"'{text}' names a method twice")
    return text


def option(default: Any, parse: Callable[[str], Any] | Sequence[str] | None, help: str, group: str) -> Any:
    """A field of `Settings`; `parse` is a `type` for `add_argument`, or the allowed names, or None for a switch."""
    return dataclasses.field(default=default, metadata={"parse": parse, "help": help, "group": group})


# --preset: settings of a comparison that several methods share (docs/baselines.md).
RECIPES: dict[str, dict[str, Any]] = {
    # CIFAR-10 on two CPU cores, about an hour per run: small images and SqueezeNet, which has the accuracy of AlexNet.
    "cifar-10-cpu": {
        "backbone": "squeezenet1_0",
        "image_size": 64,
        "num_query": 1000,
        "num_samples": 5000,
        "eval_iter": 5,
        "precision": "bfloat16",
        "margin": 0.3,
    },
}


@dataclass(frozen=True)
class Settings:
    """Every option of a run. `Settings.for_dataset` fills in the preset of a dataset."""

    method: str = option("main_mmasia", methods, f"{', '.join(ALL_METHODS)}, {BOTH} or several: a sweep", "What to run")
    dataset: str = option("digits", one_of(DATASETS), f"{', '.join(DATASETS)} (docs/datasets.md)", "What to run")
    preset: str | None = option(None, tuple(RECIPES), "settings of a comparison (docs/baselines.md)", "What to run")
    root: str = option("dataset", name, "folder of the datasets", "What to run")
    code_length: tuple[int, ...] = option(
        (12, 24, 32, 48), numbers(BITS), "bits per code; several are trained one after the other", "What to run"
    )
    seed: int = option(999, SEED, "seed of the split, of every draw and of the initial weights", "What to run")
    device: str = option("auto", name, "auto (a GPU if there is one), cpu, cuda or cuda:N", "What to run")
    logs: str = option("logs", name, "folder in which the run creates its folder", "What to run")

    num_query: int | None = option(None, COUNT, "number of query images (default: the dataset's protocol)", "Data")
    protocol: str = option("pool", PROTOCOLS, "cifar-10, folder: training pool and database (docs/datasets.md)", "Data")
    image_size: int = option(224, PIXELS, "side of the images that the network sees, in pixels", "Data")
    augment: str = option("crop-flip", AUGMENTATIONS, "augmentation of the training images", "Data")
    split: str | None = option(None, ("lists",), "flickr25k: the split of its lists, not drawn by the seed", "Data")
    query_share: float | None = option(None, SHARE, "folder: share of each class held out as queries [0.1]", "Data")
    database_img: str | None = option(None, name, "lists: database images [database_img.txt]", "Data")
    database_label: str | None = option(None, name, "lists: database labels [database_label.txt]", "Data")
    query_img: str | None = option(None, name, "lists: query images [query_img.txt]", "Data")
    query_label: str | None = option(None, name, "lists: query labels [query_label.txt]", "Data")
    train_img: str | None = option(None, name, "lists: training images [train_img.txt, or the database]", "Data")
    train_label: str | None = option(None, name, "lists: training labels [train_label.txt]", "Data")
    on_bad_image: str = option("error", ("error", "skip"), "stop at an unreadable image, or leave it out", "Data")
    max_pixels: int = option(MOST_PIXELS, COUNT, "images with more pixels are not read (docs/datasets.md)", "Data")
    check: bool = option(False, None, "look for images that are both query and database", "Data")
    cache: str = option("on", name, "decoded images in one file: on (in the dataset's folder), off, or a DIR", "Data")
    num_workers: int = option(0, THREADS, "threads that decode images; 0: one per processor", "Data")

    backbone: str = option("alexnet", BACKBONES, "image network of torchvision", "Network")
    weights: str = option(
        "imagenet", name, "initial weights of the image network: imagenet, none or a state-dict FILE", "Network"
    )

    num_samples: int = option(
        5000, COUNT_OR_ZERO, "database rows drawn in each iteration; 0: 5000, or all where there are fewer", "Training"
    )
    max_iter: int = option(50, COUNT, "iterations: draw, train, discrete step", "Training")
    max_epoch: int = option(3, COUNT, "passes over the drawn rows in an iteration", "Training")
    batch_size: int = option(64, COUNT, "images per mini-batch", "Training")
    lr: float = option(4e-5, POSITIVE, "learning rate of Adam", "Training")
    weight_decay: float = option(1e-5, WEIGHT, "weight decay of Adam", "Training")
    milestones: tuple[int, ...] = option(
        (6, 41), numbers(COUNT), "main_tomm: iterations after which the rates of G and D are divided by 5", "Training"
    )
    alpha: float = option(2.0, WEIGHT, "weight of the label codes in the discrete step", "Training")
    beta: float = option(0.1, WEIGHT, "weight of the latent codes in the discrete step", "Training")
    gamma: float = option(10.0, WEIGHT, "weight of the quantisation terms", "Training")
    margin: float = option(0.2, WEIGHT, "orthohash: margin of the cosine", "Training")
    precision: str = option(
        "float32", ("float32", "bfloat16"), "precision of the networks' passes; bfloat16 is faster", "Training"
    )
    cuda_graphs: bool = option(False, None, "replay recorded kernels (CUDA graphs); faster on a GPU", "Training")
    save_iter: int = option(10, COUNT_OR_ZERO, "iterations between two checkpoints; 0: none", "Training")

    latent: str = option("sigmoid", ("sigmoid", "tanh"), "activation of the latent code", "Ablations")
    similarity: str = option("binary", ("binary", "signed"), "target of dissimilar pairs: 0 or -K", "Ablations")
    adjacency: str = option("raw", ("raw", "normalised"), "graph of the latent features", "Ablations")
    fresh_batches: bool = option(False, None, "main_tomm: shuffle and augment again in every pass", "Ablations")
    update_all_rows: bool = option(False, None, "the discrete step updates the whole database", "Ablations")
    detach_targets: bool = option(False, None, "no gradient into the targets of the reconstructions", "Ablations")
    no_discriminator: bool = option(False, None, "main_tomm: no adversarial step", "Ablations")
    no_cycle_terms: bool = option(False, None, "no reconstruction terms in the loss", "Ablations")

    eval_iter: int = option(10, COUNT, "iterations between two evaluations", "Evaluation")
    validate: int = option(0, COUNT_OR_ZERO, "database images held out to select the iteration", "Evaluation")
    topk: int = option(-1, bounded(int, -MANY, MANY), "cut-off of the mAP; 0 or less: the whole database", "Evaluation")
    figures: bool = option(False, None, "draw the figures of the run into its folder at the end", "Evaluation")
    tensorboard: bool = option(False, None, "write TensorBoard events into the run's folder", "Evaluation")

    @classmethod
    def for_dataset(cls, dataset: str, **given: Any) -> Settings:
        """The defaults, over them the preset of `dataset`, then the `preset` if one is given, then the `given` fields.

        Raises:
            UserError: a given field is unknown.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for field in given:
            if field not in known:
                close = difflib.get_close_matches(field, known, 1)
                raise UserError(f"Unknown setting '{field}'" + (f"; did you mean '{close[0]}'?" if close else "."))
        recipe = RECIPES.get(given.get("preset") or "", {})
        return cls(**{"dataset": dataset, **PRESETS.get(dataset, {}), **recipe, **given})

    def own_preset(self) -> Settings:
        """The settings with the same dataset and the same --preset, and no other flag."""
        return Settings.for_dataset(self.dataset, preset=self.preset)

    def as_json(self) -> dict[str, Any]:
        """Every field by name; tuples as lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any], path: Path) -> Settings:
        """The settings of the config.json `path`; what an older run does not have gets the preset's value.

        Raises:
            UserError: a field is unknown, or its value is none that a run can have.
        """
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()
        }
        for field in dataclasses.fields(cls):
            if field.name in given and not _allowed(field, given[field.name]):
                raise UserError(
                    f"{path}: '{field.name}' is {saved[field.name]!r}, which no run writes; restore the file."
                )
        if "milestones" not in given and "max_iter" in given:  # older runs: the release's rule, not yet a setting
            given["milestones"] = (6, 41) if given["max_iter"] == 50 else (131,)
        return cls.for_dataset(given.pop("dataset", cls.dataset), **given)

    def as_flags(self) -> list[str]:
        """The flags that give these settings: those in `IDENTITY`, and what differs from the preset."""
        preset = self.own_preset()
        flags: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == getattr(preset, field.name) and (field.name not in (*IDENTITY, "preset") or value is None):
                continue
            if field.metadata["parse"] is None:
                flags.append(flag_of(field.name))
            else:
                text = shown(value)
                flags += [f"{flag_of(field.name)}={text}"] if text.startswith("-") else [flag_of(field.name), text]
        return flags

    def data_options(self) -> Options:
        """The settings that `data.load_data` needs."""
        return Options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Options)})


def _allowed(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether the command line can give a setting this value, or the value stands for a flag that is not given."""
    parse = field.metadata["parse"]
    if parse is None:
        return isinstance(value, bool)
    if value is None:
        return field.default is None
    if field.name == "num_samples" and value == PRESETS["folder"]["num_samples"]:
        return True
    try:
        given = parse(shown(value)) if callable(parse) else one_of(parse)(shown(value))
    except argparse.ArgumentTypeError:
        return False
    return bool(given == value)


# What differs from the defaults above, which are the release's settings for CIFAR-10 (docs/datasets.md has the table).
_LONG = {"max_iter": 150, "milestones": (131,)}
PRESETS: dict[str, dict[str, Any]] = {
    "cifar-10": {"margin": 0.3},
    "nus-wide-tc21": {"num_samples": 10500, **_LONG, "topk": 5000},
    "nus-wide-tc10": {"num_samples": 10500, **_LONG, "topk": 5000},
    "flickr25k": {**_LONG, "topk": 5000},
    "imagenet": {"num_samples": 10500, **_LONG, "topk": 1000},
    # Own images: 0 means 5,000 rows, or the whole database where it is smaller (training/preflight.py).
    "folder": {"num_samples": 0},
    "lists": {"num_samples": 0},
    # Small images, no ImageNet weights and a higher rate: a random AlexNet learns the digits in minutes.
    "digits": {
        "num_samples": 1000,
        "max_iter": 9,
        "milestones": (131,),
        "eval_iter": 3,
        "lr": 1e-4,
        "image_size": 64,
        "weights": "none",
        "augment": "none",
    },
}

IDENTITY = ("method", "dataset", "code_length", "seed")  # what tells the cells of a sweep apart

# What a resumed run may change: none of these changes the results, but for rounding on another device.
FREE_TO_CHANGE = (
    *("root", "device", "cuda_graphs", "logs", "cache", "check", "num_workers"),
    *("save_iter", "figures", "tensorboard"),
)


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def preset_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings of a config.json are over: every field, as the dataset's preset and its --preset give it."""
    return Settings.for_dataset(settings["dataset"], preset=settings.get("preset")).as_json()


def differing_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings of config.json that change results and differ from the preset, except `IDENTITY`."""
    preset = preset_of(settings) | {"preset": None}  # named like a flag
    ignored = {*IDENTITY, *FREE_TO_CHANGE} - ({"root"} if settings["dataset"] in OWN_IMAGES else set())
    return {field: value for field, value in settings.items() if field not in ignored and value != preset.get(field)}
