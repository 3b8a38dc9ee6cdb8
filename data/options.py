"""The options of `load_data`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from utils.command import MOST_PIXELS, PROTOCOLS, flag_of
from utils.errors import UserError

# The options that not every dataset has, and the datasets that have them.
ONLY_FOR = {
    "protocol": ("cifar-10", "folder"),
    "split": ("flickr25k",),
    "query_share": ("folder",),
    "database_img": ("lists",),
    "database_label": ("lists",),
    "query_img": ("lists",),
    "query_label": ("lists",),
    "train_img": ("lists",),
    "train_label": ("lists",),
}
MINIMA = {"seed": 0, "num_workers": 0, "num_query": 1, "image_size": 8, "max_pixels": 1}


@dataclass(frozen=True)
class Options:
    """What `load_data` passes to every loader; datasets that are in memory ignore `on_bad_image` and `cache`.

    Attributes:
        seed: decides which images are queries.
        num_query: number of queries; None: the protocol of the dataset.
        image_size: S, side of the square images in pixels; None: 224 (digits: 64).
        protocol: cifar-10 and folder, one of `PROTOCOLS`: "pool" trains on the database; "train-5000" on 5,000 images
            that are not in it; "test-10000" has 10,000 queries.
        split: flickr25k: "lists" for the split of the lists; None: the protocol of the dataset.
        query_share: folder: share of each class held out as queries; None: 0.1.
        database_img, query_img, train_img: lists: image lists, relative to the root folder or absolute; None: the name
            of the option with .txt; without database_img.txt, database.txt, test.txt and train.txt. No list of
            training images: the database is the training pool.
        database_label, query_label, train_label: lists: label rows; None: the name of the option with .txt where there
            is such a file, otherwise the labels are behind the names.
        max_pixels: images with more pixels cannot be read (data/decode.py).
        on_bad_image: "error", or "skip": unreadable images are left out of the split.
        cache: "on" keeps the decoded images in a file in the dataset's folder, "off" keeps none; any other text is
            the folder for that file.
        check: look for images that are both query and database, by content.
        num_workers: threads that decode; 0: one per processor.

    Raises:
        UserError: a value is not allowed; the message names the flag.
    """

    seed: int = 0
    num_query: int | None = None
    image_size: int | None = None
    protocol: str = "pool"
    split: str | None = None
    query_share: float | None = None
    database_img: str | None = None
    database_label: str | None = None
    query_img: str | None = None
    query_label: str | None = None
    train_img: str | None = None
    train_label: str | None = None
    max_pixels: int = MOST_PIXELS
    on_bad_image: str = "error"
    cache: str = "on"
    check: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, minimum in MINIMA.items():
            value = getattr(self, name)
            if value is None and name in ("num_query", "image_size"):
                continue
            if type(value) is not int or value < minimum:
                raise UserError(f"{flag_of(name)} must be a whole number, {minimum} or more, not {value!r}.")
        if self.on_bad_image not in ("error", "skip"):
            raise UserError(f"--on-bad-image must be error or skip, not {self.on_bad_image!r}.")
        if self.protocol not in PROTOCOLS:
            raise UserError(f"--protocol must be one of {', '.join(PROTOCOLS)}, not {self.protocol!r}.")
        if self.split not in (None, "lists"):
            raise UserError(f"--split must be lists, or be left out, not {self.split!r}.")
        if self.query_share is not None and not 0 < self.query_share < 1:
            raise UserError(f"--query-share must be above 0 and below 1, not {self.query_share!r}.")
        if not isinstance(self.cache, str) or not self.cache:
            raise UserError(f"--cache must be on, off or a folder, not {self.cache!r}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Options:
        """Those of the settings of a run (config.json), which have more entries; older runs have fewer."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    def require_fitting(self, dataset: str) -> None:
        """Raise a UserError that names an option of another dataset."""
        for field in fields(self):
            owners = ONLY_FOR.get(field.name, (dataset,))
            if dataset not in owners and getattr(self, field.name) != field.default:
                named = f"dataset{'s' if len(owners) > 1 else ''} {' and '.join(owners)}"
                raise UserError(f"{flag_of(field.name)} is an option of the {named}; leave it out.")

    @property
    def threads(self) -> int:
        """Threads for decoding and checking, 1 or more."""
        return self.num_workers or os.cpu_count() or 1
