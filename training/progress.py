"""What the user sees of a run: the progress bar and the table at the end; and the mean losses of a pass."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from training.settings import Settings
from utils import distributed
from utils.errors import UserError
from utils.runs import DATABASES


class Progress:
    """The progress bar of one code length (on a terminal only), and the mean losses of a pass.

    Losses stay tensors on their device until a pass ends, so that no step waits for a GPU.
    """

    def __init__(self, settings: Settings, code_length: int, done: int) -> None:
        self.settings = settings
        num_batches = -(-settings.num_samples // settings.batch_size)
        self.bar = tqdm(
            initial=done * settings.max_epoch * num_batches,
            total=settings.max_iter * settings.max_epoch * num_batches,
            desc=f"{code_length} bits",
            unit="batch",
            disable=True if distributed.rank() else None,
            dynamic_ncols=True,
        )
        self.losses: dict[str, list[Tensor]] = defaultdict(list)

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
        broken = [part for part, value in means.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"The loss ({', '.join(broken)}) is not a finite number at iteration {iteration + 1}, pass "
                f"{epoch + 1}; lower --lr. Earlier checkpoints are kept."
            )
        self.bar.set_postfix_str(
            f"iteration {iteration + 1}/{self.settings.max_iter}, pass {epoch + 1}/{self.settings.max_epoch}, "
            f"loss {sum(means.values()):.3f}"
        )
        return means


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
