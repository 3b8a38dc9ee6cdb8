"""Random numbers that depend only on their key.

A draw depends on (seed, purpose, iteration, ...), never on earlier draws. So a split does not change when an option is
added, and a resumed run draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed for `key`, e.g. ``(seed, "split")`` or ``(seed, "augment", iteration, epoch)``.

    Names enter by their CRC-32, because Python's `hash` changes from process to process. numpy's SeedSequence mixes the
    parts, so that similar keys give unrelated streams.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int | str) -> torch.Generator:
    """A CPU `torch.Generator` seeded by `key` (see `derive_seed`)."""
    return torch.Generator().manual_seed(derive_seed(*key))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices): initial weights and dropout use torch's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global state is what third-party code would draw from
    torch.manual_seed(seed)
