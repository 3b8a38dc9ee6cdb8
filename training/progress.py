"""What the user sees of a run: the progress bar and the table at the end; and the mean losses of a pass."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from training.divergence import require_finite_losses
from training.run_folder import RunFolder
from utils import distributed
from utils.log import log, progress_bar
from utils.runs import DATABASES

FORWARD_SHARE = 1 / 3  # of the time of a training step: the forward pass, which is all that encoding an image needs
LONG = 3600  # seconds of a run on a CPU, above which the user is warned


class Progress:
    """The progress bar of one code length, the mean losses of a pass, and an estimate of the time that the run needs.

    Losses stay tensors on their device until a pass ends, so that no step waits for a GPU. `done` iterations are
    finished; the evaluations of one code length encode `encoded` images.
    """

    def __init__(self, run: RunFolder, code_length: int, done: int, encoded: int = 0) -> None:
        self.run, self.settings, self.done, self.encoded = run, run.settings, done, encoded
        settings = self.settings
        num_batches = -(-settings.num_samples // (settings.batch_size * distributed.size()))
        self.bar = progress_bar(
            f"{code_length} bits",
            settings.max_iter * settings.max_epoch * num_batches,
            " batches",
            initial=done * settings.max_epoch * num_batches,
            leave=True,
        )
        self.losses: dict[str, list[Tensor]] = defaultdict(list)
        self.started: float | None = time.perf_counter()  # of the first pass

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, parts: dict[str, Tensor]) -> None:
        """Count one mini-batch; `parts` are its losses by name, scalars."""
        for part, value in parts.items():
            self.losses[part].append(value.detach())
        self.bar.update()

    def end_pass(self, iteration: int, epoch: int) -> dict[str, float]:
        """The mean of each part over the pass that has ended, also shown on the bar; the next pass starts at zero.

        Raises:
            UserError: a mean is not finite. Nothing of this iteration is saved; earlier checkpoints stay.
        """
        means = {part: float(torch.stack(values).double().mean()) for part, values in self.losses.items()}
        means = distributed.mean_over_processes(means)
        self.losses.clear()
        require_finite_losses(means, iteration + 1)
        self.bar.set_postfix_str(
            f"iteration {iteration + 1}/{self.settings.max_iter}, pass {epoch + 1}/{self.settings.max_epoch}, "
            f"loss {sum(means.values()):.3f}",
            refresh=False,
        )
        if self.started is not None:
            self._estimate(time.perf_counter() - self.started)
            self.started = None
        return means

    def _estimate(self, seconds: float) -> None:
        """Say after the first pass, of so many seconds, how long the rest of the run will take."""
        settings = self.settings
        lengths = sum(not self.run.is_finished(length) for length in settings.code_length)
        passes = (lengths * settings.max_iter - self.done) * settings.max_epoch - 1
        encoding = lengths * self.encoded / settings.num_samples * FORWARD_SHARE  # in units of a pass
        total = seconds * (passes + encoding)
        message = f"The first pass took {duration(seconds)}: the rest of the run takes about {duration(total)}"
        if self.run.device.type == "cpu" and total > LONG:
            log.warning(
                "%s on the CPU; a GPU, a smaller --image-size, --backbone squeezenet1_0 or fewer --max-iter shorten it",
                message,
            )
        else:
            log.info("%s", message)


def duration(seconds: float) -> str:
    """A time in words: "45 s", "12 min", "2 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


RESULT_HEADER = f"{'learned':>8} {'filled':>8} {'network':>8} {'best':>8} {'seconds':>8}"


def result_columns(row: dict[str, Any]) -> str:
    """The columns of `RESULT_HEADER` for a row of results.json: expected mAP and seconds."""
    values = [
        found.get("expected") for found in (*(row["map"].get(kind, {}) for kind in DATABASES), row.get("best", {}))
    ]
    texts = ["" if value is None else f"{value:.4f}" for value in values] + [f"{row.get('seconds', 0):.0f}"]
    return " ".join(f"{text:>8}" for text in texts)


def result_table(results: list[dict[str, Any]]) -> str:
    """The table at the end of a run, one line per code length, with notes on rows, queries and --validate."""
    header = f"{'method':<12} {'bits':>4} {RESULT_HEADER}"
    lines = [header, "-" * len(header)]
    lines += [f"{row.get('method', ''):<12} {row['code_length']:>4} {result_columns(row)}" for row in results]
    for row in results:
        notes = []
        if row.get("never_drawn"):
            notes.append(f"{row['never_drawn']} database rows were never drawn and keep the code 0 in 'learned'")
        if row.get("queries_without_relevant"):
            notes.append(f"{row['queries_without_relevant']} queries have no relevant image and count as 0")
        if "iteration" in row.get("selected", {}):
            notes.append(f"iteration {row['selected']['iteration']} was selected on held-out images")
        if notes:
            lines.append(f"{row['code_length']} bits: {'; '.join(notes)}.")
    return "\n".join(lines)
