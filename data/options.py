"""The options that every dataset understands."""

from __future__ import annotations

import os
from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """What `load_data` hands to every loader; a dataset of pixels in memory has no use for the last five.

    Attributes:
        seed: decides which images are queries.
        num_query: number of queries; None: the dataset's own protocol.
        image_size: S, pixels of the square images; None: 224 (digits: 64).
        split: "lists" for the lists as given (flickr25k); None: the protocol's own split.
        on_bad_image: "error", or "skip": an image that cannot be read is left out of the split.
        cache: keep decoded pixels in a file beside the dataset; a path: in that folder. "on" and "off" are True and
            False, as a command line spells them.
        check: look for images that are both query and database, by content.
        num_workers: threads that decode; 0: one a processor.
    """

    seed: int = 0
    num_query: int | None = None
    image_size: int | None = None
    split: str | None = None
    on_bad_image: str = "error"
    cache: bool | str | os.PathLike[str] = True
    check: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.cache in ("on", "off"):
            object.__setattr__(self, "cache", self.cache == "on")
        for field in ("seed", "num_workers"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"{field} must be a whole number, 0 or more, not {value!r}.")
        for field, least in (("num_query", 1), ("image_size", 8)):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise UserError(f"{field} must be a whole number, {least} or more, not {value!r}.")
        if self.on_bad_image not in ("error", "skip"):
            raise UserError(f"on_bad_image must be error or skip, not {self.on_bad_image!r}.")
        if not isinstance(self.cache, (bool, str, os.PathLike)):
            raise UserError(f"cache must be on, off or a folder, not {self.cache!r}.")
        if self.split not in (None, "lists"):
            raise UserError(f"split must be left out or be lists, not {self.split!r}.")

    @property
    def threads(self) -> int:
        """Threads for decoding and checking, 1 or more."""
        return self.num_workers or os.cpu_count() or 1
