"""Every kind of change of a store, in a process that a test kills. Imports little, so that it starts soon."""

from __future__ import annotations

import time
from typing import Any

import search.store
from search.encode import Encoding
from search.model import Model
from search.store import Store, build

FEW = Encoding(batch_size=2, num_workers=1)


def names(store: Store) -> list[str]:
    """Those of all images, sorted."""
    return sorted(store.collection().names.to_pylist())


def all_changes(uri: str, photos: str, model_file: str, begun: Any, last: int) -> None:
    """Build, remove, add and optimize, in versions of 4 of 30 images; then wait to be killed.

    Args:
        begun: a shared number: how many changes have begun.
        last: the change after which nothing more is done.
    """
    search.store._IMAGES_IN_VERSION = 4

    def counted(change: Any) -> Any:
        def begin(*arguments: Any, **options: Any) -> Any:
            if begun.value == last:
                time.sleep(600)
            begun.value += 1
            return change(*arguments, **options)

        return begin

    for name in ("_write", "remove", "optimize"):
        setattr(Store, name, counted(getattr(Store, name)))
    store, _ = build(uri, Model.load(model_file), [photos], FEW)  # 8 changes
    store.remove(names(store)[:15])
    store.add([photos], FEW)  # 4 changes
    store.optimize(index=True, lists=4)
    store.remove(names(store)[15:])
    time.sleep(600)
