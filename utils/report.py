"""What a run reports: a line an iteration, and at the end the figures of the learned, filled and network codes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data import Split

from .encode import encode
from .evaluate import mean_average_precision
from .progress import log
from .run_folder import RunFolder
from .settings import Settings

if TYPE_CHECKING:
    from .tensorboard import TensorBoard


class Report:
    """Evaluates one code length while it trains, and writes its figures into the run's folder.

    Args:
        run: the run's folder.
        settings: of the run.
        code_length: K.
        split: queries and database.
        model_image: the image network that trains.
    """

    def __init__(self, run: RunFolder, settings: Settings, code_length: int, split: Split, model_image: nn.Module):
        self.run, self.settings, self.code_length, self.split = run, settings, code_length, split
        self.model_image = model_image
        self.best: dict[str, Any] = {"iteration": 0, "expected": -1.0}
        # With --validate: the iteration that did best on the held-out images, and what it had learnt.
        self.selected: dict[str, Any] = {"iteration": 0, "validation": -1.0}
        self.selected_state: dict[str, Any] = {}
        self.seconds = 0.0
        self.clock = time.perf_counter()
        self.board: TensorBoard | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the report."""
        return {name: getattr(self, name) for name in ("best", "selected", "selected_state", "seconds")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)

    def iteration(self, iteration: int, codes: Tensor, sample: Tensor, losses: dict[str, float]) -> None:
        """Write the line of a finished iteration; every `eval_iter` iterations and at the end with the mAP.

        Args:
            iteration: 0-based; the log counts from 1.
            codes: B [n_database, K].
            sample: Ω, the rows drawn in this iteration.
            losses: means of the last pass, by part.
        """
        done = iteration + 1
        query_code = None
        line = {"code_length": self.code_length, "iteration": done, "loss": losses, **code_statistics(codes[sample])}
        if done % self.settings.eval_iter == 0 or done == self.settings.max_iter:
            query_code = self._encode(self.split.query)
            line |= self._evaluate(done, query_code, codes)
        line["seconds"] = round(self._lap(), 3)
        self.run.log(line)
        if self.settings.tensorboard and self.run.writes:
            self._show(line, query_code, codes)

    def finish(self, codes: Tensor) -> dict[str, Any]:
        """Evaluate the trained model and write the four code files, the model and the row of results.json.

        Three databases that a user must be able to tell apart, each under both tie rules. learned: the codes as
        released, rows never drawn 0; learned_filled: those rows encoded by the network; network: the whole database so
        encoded, the figure that tells how unseen images fare. They are those of the last iteration; with --validate
        those of the selected one.

        Args:
            codes: B [n_database, K].

        Returns:
            The row of results.json.
        """
        validated = self.split.validation is not None
        if validated:
            self.model_image.load_state_dict(self.selected_state["model_image"])
            codes = self.selected_state["codes"]
        query_code, network_code = self._encode(self.split.query), self._encode(self.split.database)
        learned = codes.cpu().float()
        never_drawn = (learned == 0).all(dim=1, keepdim=True)  # [n_database, 1]
        databases = {
            "learned": learned,
            "learned_filled": torch.where(never_drawn, network_code, learned),
            "network": network_code,
        }
        figures = {
            kind: {ties: self._map(query_code, self.split.query.labels, code, ties) for ties in ("expected", "stable")}
            for kind, code in databases.items()
        }
        tensors = {
            "query_code": query_code,
            "database_code": learned,
            "query_targets": self.split.query.labels,
            "database_targets": self.split.database.labels,
        }
        self.run.save_codes(self.code_length, figures["learned"]["expected"], tensors)
        self.run.save(f"model_image-{self.code_length}bits.pt", self.model_image.state_dict())
        if self.board is not None:
            self.board.close()
        self._lap()
        row = {
            "method": self.settings.method,
            "dataset": self.settings.dataset,
            "code_length": self.code_length,
            "seed": self.settings.seed,
            "iterations": self.settings.max_iter,
            "seconds": round(self.seconds, 3),
            "map": figures,
            "best": self.best,
            "topk": self.settings.topk,
            "never_drawn": int(never_drawn.sum()),
            "queries_without_relevant": without_relevant(self.split.query.labels, self.split.database.labels),
        }
        if validated:
            row["selected"] = self.selected
        self.run.add_result(row)
        return row

    def _evaluate(self, done: int, query_code: Tensor, codes: Tensor) -> dict[str, float]:
        figures = {"map": self._map(query_code, self.split.query.labels, codes)}
        if figures["map"] > self.best["expected"]:
            self.best = {"iteration": done, "expected": figures["map"]}
        log.info("%d bits, iteration %d: mAP of the learned codes %.4f", self.code_length, done, figures["map"])
        if self.split.validation is not None:
            validation_code = self._encode(self.split.validation)
            figures["validation_map"] = self._map(validation_code, self.split.validation.labels, codes)
            if figures["validation_map"] > self.selected["validation"]:
                self.selected = {"iteration": done, "validation": figures["validation_map"]}
                state = {name: value.detach().cpu().clone() for name, value in self.model_image.state_dict().items()}
                self.selected_state = {"model_image": state, "codes": codes.to("cpu", torch.int8)}
        return figures

    def _show(self, line: dict[str, Any], query_code: Tensor | None, codes: Tensor) -> None:
        if self.board is None:
            from .tensorboard import TensorBoard  # tensorboard is slow to import: only where it is wanted

            self.board = TensorBoard(self.run.path, self.code_length, line["iteration"] - 1)
        self.board.iteration(line)
        if query_code is not None:  # an evaluation
            from .gallery import gallery_of, gallery_pixels

            self.board.gallery(gallery_pixels(gallery_of(self.split, query_code, codes.cpu())), line["iteration"])
        self.clock = time.perf_counter()  # pictures are no part of training's seconds

    def _encode(self, dataset) -> Tensor:
        return encode(
            self.model_image,
            dataset,
            batch_size=self.settings.batch_size,
            device=self.run.device,
            num_workers=self.settings.num_workers,
        )

    def _map(self, query_code: Tensor, query_labels: Tensor, codes: Tensor, ties: str = "expected") -> float:
        return mean_average_precision(
            query_code, codes, query_labels, self.split.database.labels, self.run.device, self.settings.topk, ties=ties
        )

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self.clock = now - self.clock, now
        self.seconds += lap
        return lap


def without_relevant(query_labels: Tensor, database_labels: Tensor) -> int:
    """The number of queries [Q, C] that share no label with any database image [D, C]; each counts as AP 0."""
    return int(((query_labels > 0) & (database_labels > 0).any(dim=0)).any(dim=1).logical_not().sum())


def code_statistics(codes: Tensor) -> dict[str, Any]:
    """Bit balance and variety of codes [n, K]: {"bit_mean": K means, "distinct": share of distinct codes}."""
    return {
        "bit_mean": [round(value, 4) for value in codes.mean(dim=0).tolist()],
        "distinct": len(torch.unique(codes, dim=0)) / len(codes),
    }
