"""`--tensorboard`: the metrics of a run as TensorBoard events, during training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError


def require_tensorboard() -> None:
    """Check before training that the package is installed.

    Raises:
        UserError: tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: needs the package tensorboard; pip install tensorboard.")


class TensorBoard:
    """Writes one code length of a run into `folder/tensorboard/{K}bits/`, which TensorBoard shows as one run.

    `done` iterations were done before; events of later ones, from an interrupted run, are hidden.
    """

    def __init__(self, folder: str | Path, code_length: int, done: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed only with --tensorboard

        self.path = Path(folder) / "tensorboard" / f"{code_length}bits"
        self.writer = SummaryWriter(self.path, purge_step=done + 1 if done else None)

    def iteration(self, row: dict[str, Any]) -> None:
        """Write a row of metrics.jsonl, at the step `row["iteration"]`.

        Scalars "loss/PART", "distinct" and, after an evaluation, "map" (with --validate also "validation_map"); the
        histogram "bit_mean" over the K bits.
        """
        step = row["iteration"]
        for part, value in row["loss"].items():
            self.writer.add_scalar(f"loss/{part}", value, step)
        self.writer.add_scalar("distinct", row["distinct"], step)
        self.writer.add_histogram("bit_mean", np.asarray(row["bit_mean"], dtype=np.float64), step)
        for figure in ("map", "validation_map"):
            if figure in row:
                self.writer.add_scalar(figure, row[figure], step)
        self.writer.flush()

    def gallery(self, pixels: np.ndarray, iteration: int) -> None:
        """Write a gallery (`plots.gallery.gallery_pixels`, uint8 [height, width, 3]) as the image "gallery"."""
        self.writer.add_image("gallery", pixels, iteration, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self.writer.close()
