"""What surrounds the formulas of every method: iterations, mini-batches, progress, checkpoints and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data import Split, data_digest
from data.data_loader import BatchLoader, train_batches
from modules.discrete import draw_sample
from training.checkpoint import Checkpoint, Stateful
from training.cuda_graphs import RecordedStep, Step, replay_forward
from training.divergence import require_codes, require_finite_state
from training.progress import Progress
from training.recorder import Recorder
from training.run_folder import RunFolder
from utils import distributed
from utils.interrupt import Interrupted


class Loop:
    """The iterations of one code length. Every method uses it, so that all see the same images equally often.

    `codes` is B, the codes of the training pool [n, K], on the device, restored in place from a checkpoint; None: the
    method learns none, and the network encodes the database. `parts` are the other networks, the optimisers and the
    schedules by name; a checkpoint saves them with `model_image`.
    """

    def __init__(
        self,
        run: RunFolder,
        code_length: int,
        split: Split,
        codes: Tensor | None,
        model_image: nn.Module,
        **parts: Stateful,
    ) -> None:
        run.open(data_digest(split))
        self.run, self.settings, self.pool, self.codes = run, run.settings, split.train, codes
        # Codes learned for images outside the database cannot be searched: the network encodes the database.
        self.database_codes = None if split.separate else codes
        self.recorder = Recorder(run, code_length, split, model_image)
        self.checkpoint = Checkpoint(run, code_length, codes, model_image=model_image, **parts, report=self.recorder)
        done, row = self.checkpoint.restore()
        if done < self.settings.max_iter:
            self.recorder.train_longer()
        # Gradients that several processes average cannot be part of a recording.
        self.graphs = self.settings.cuda_graphs and run.device.type == "cuda" and distributed.size() == 1
        self.parts = {"model_image": model_image, **parts}
        self.progress = Progress(run, code_length, done, self.recorder.images_to_encode(self.database_codes))
        self.left = range(done, self.settings.max_iter)
        self.losses: dict[str, float] = {}
        if row is not None:
            self.recorder.record(row, self.database_codes)

    def recorded(self, step: Step, *optimizers: torch.optim.Optimizer) -> Step:
        """With --cuda-graphs a `RecordedStep`, otherwise `step` itself."""
        return RecordedStep(step, optimizers) if self.graphs else step

    def replay(self, network: nn.Module) -> None:
        """With --cuda-graphs, `replay_forward` for a network whose step cannot be recorded as a whole."""
        if self.graphs:
            replay_forward(network)

    def iterations(self) -> Iterator[tuple[int, Tensor]]:
        """(number from 0, Ω) of each iteration that is not yet done.

        Ω are its database rows, ascending, int64 [n], on the device.
        """
        with self.progress:
            for iteration in self.left:
                sample = draw_sample(len(self.pool), self.settings.num_samples, self.settings.seed, iteration)
                self.run.stop.deferred = True
                yield iteration, sample.to(self.run.device)

    def batches(self, sample: Tensor, *key: int) -> BatchLoader:
        """One shuffled and augmented pass over Ω: images [N, 3, S, S], labels [N, C], rows [N]; the same `key`,
        the same batches."""
        return train_batches(
            self.pool,
            sample,
            batch_size=self.settings.batch_size,
            key=(self.settings.seed, "batches", *key),
            augment=self.settings.augment,
            device=self.run.device,
            num_workers=self.settings.num_workers,
            channels_last=True,
            share=distributed.share(),
        )

    def step(self, losses: dict[str, Tensor]) -> None:
        """After each mini-batch: its losses by name, scalars."""
        self.progress.step(losses)

    def end_pass(self, iteration: int, epoch: int) -> None:
        """After each pass: every process gets the same buffers.

        UserError where a loss or a weight is not finite.
        """
        self.losses = self.progress.end_pass(iteration, epoch)
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                distributed.average_buffers(part)
        require_finite_state(self.parts, iteration + 1)

    def end_iteration(self, iteration: int, sample: Tensor, sample_codes: Tensor | None = None) -> None:
        """After the discrete step: write the row of the iteration, evaluate and save where it is due.

        `sample_codes` are the network's codes of the sample, ±1 [n, K], where there is no B. Raises UserError where
        codes are 0 or not finite or a file cannot be written, and Interrupted where a signal has asked the run to stop.
        """
        if self.codes is not None:
            sample_codes = self.codes[sample]
        assert sample_codes is not None
        require_codes(sample_codes, "learned" if self.codes is not None else "network's", iteration + 1)
        row, stop = self.recorder.iteration_row(iteration, sample_codes, self.losses), self.run.stop
        try:
            if asked := self.checkpoint.asked_to_stop():
                raise Interrupted(asked)
            # The processes of a job can only stop together, so that a job evaluates to the end.
            stop.deferred = distributed.size() > 1
            self.recorder.record(row, self.database_codes)
            stop.deferred = True
        except Interrupted:
            stop.deferred = True
            self.checkpoint.write(iteration + 1, row)  # the resumed run evaluates this iteration
            raise
        self.checkpoint.save(iteration)

    def finish(self, simplify: Callable[[], None] | None = None) -> dict[str, Any]:
        """Evaluate and write the results; returns the row of results.json.

        `simplify` brings model_image into the form that `image_network` gives, without changing its codes. Raises
        Interrupted where a signal has stopped it; the last checkpoint is that of the last iteration.
        """
        result = self.recorder.finish(self.database_codes, simplify)
        if stop := self.checkpoint.asked_to_stop():
            raise Interrupted(stop)
        self.run.stop.deferred = False
        return result
