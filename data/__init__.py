"""Datasets: `load_data` loads any of `DATASETS` and splits it by the protocol in docs/datasets.md.

A name is imported when it is first used: the search decodes images without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.datasets import DATASETS, load_data
    from data.digest import data_digest
    from data.image_dataset import ImageDataset, Split, hold_out
    from data.options import Options

__all__ = ["DATASETS", "ImageDataset", "Options", "Split", "data_digest", "hold_out", "load_data"]

_MODULES = {
    "DATASETS": "datasets",
    "load_data": "datasets",
    "data_digest": "digest",
    "ImageDataset": "image_dataset",
    "Split": "image_dataset",
    "hold_out": "image_dataset",
    "Options": "options",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'data' has no attribute {name!r}")
    return getattr(import_module(f"data.{_MODULES[name]}"), name)
