"""Evaluation during and after training: a row for each iteration, and at the end the row of results.json."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data import ImageDataset, Split
from training.divergence import require_codes
from training.network_codes import encode
from training.run_folder import RunFolder
from training.tensorboard import TensorBoard
from utils.evaluate import mean_average_precision
from utils.log import log

_CHOICES = ("best", "selected", "selected_state")  # what the evaluations have found


class Recorder:
    """Evaluates one code length of a run and writes the metrics into the run's folder."""

    def __init__(self, run: RunFolder, code_length: int, split: Split, model_image: nn.Module) -> None:
        self.run, self.settings, self.code_length, self.split = run, run.settings, code_length, split
        self.model_image = model_image
        self.best: dict[str, Any] = {"iteration": 0, "expected": -1.0}
        # With --validate: the iteration that was best on the held-out images, and its model and codes.
        self.selected: dict[str, Any] = {"iteration": 0, "validation": -1.0}
        self.selected_state: dict[str, Any] = {}
        # These three before an evaluation that is only due because the run ends; for a run that is trained longer.
        self.scheduled: dict[str, Any] = {}
        self.seconds = 0.0
        self.clock = time.perf_counter()
        self.board: TensorBoard | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the recorder."""
        return {name: getattr(self, name) for name in (*_CHOICES, "scheduled", "seconds")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; a ValueError where a kept network is another one."""
        own = {name: value.shape for name, value in self.model_image.state_dict().items()}
        for choices in (state, state["scheduled"]):
            kept = choices["selected_state"] if choices else {}
            if kept and {name: value.shape for name, value in kept["model_image"].items()} != own:
                raise ValueError("the network of the selected iteration is another one")
        for name, value in state.items():
            setattr(self, name, value)

    def train_longer(self) -> None:
        """Forget the evaluation at the end of a shorter run, which a run of this length does not have."""
        for name, value in self.scheduled.items():
            setattr(self, name, value)
        self.scheduled = {}

    def iteration_row(self, iteration: int, sample_codes: Tensor, losses: dict[str, float]) -> dict[str, Any]:
        """The row of a finished iteration, without its evaluation.

        `iteration` counts from 0, the row from 1; `sample_codes` [n, K] are the codes of the drawn rows; `losses` are
        the means of the last pass.
        """
        row = {"code_length": self.code_length, "iteration": iteration + 1, "loss": losses}
        row |= code_statistics(sample_codes)
        return row | {"seconds": round(self._lap(), 3)}

    def record(self, row: dict[str, Any], codes: Tensor | None) -> None:
        """Write the row of a finished iteration; every `eval_iter` iterations and at the end with the mAP.

        `codes` is B [n_database, K], or None where the network encodes the database.
        """
        done, query_code = row["iteration"], None
        due = done % self.settings.eval_iter == 0
        if due or done == self.settings.max_iter:
            query_code = self._encode(self.split.query, "query", done)
            kind = "network" if codes is None else "learned"
            codes = self._encode(self.split.database, "database", done) if codes is None else codes
            if not due:
                self.scheduled = {name: getattr(self, name) for name in _CHOICES}
            row = row | self._evaluate(done, query_code, codes, kind)
        row = row | {"seconds": round(row["seconds"] + self._lap(), 3)}
        self.run.log(row)
        if self.settings.tensorboard and self.run.writes:
            self._show(row, query_code, codes)

    def images_to_encode(self, codes: Tensor | None) -> int:
        """Images that one code length encodes, in all its evaluations; `codes` as for `record`."""
        evaluations = -(-self.settings.max_iter // self.settings.eval_iter)
        queries, database = len(self.split.query), len(self.split.database)
        validation = 0 if self.split.validation is None else len(self.split.validation)
        each = queries + validation + (database if codes is None else 0)
        return evaluations * each + queries + database

    def finish(self, codes: Tensor | None, simplify: Callable[[], None] | None = None) -> dict[str, Any]:
        """Evaluate the trained model and write the four code files, the model and the row of results.json.

        The codes of `database_codes` are evaluated, each with both rules for ties. They are those of the last
        iteration; with --validate those of the selected iteration. The file database_code has the first of them.
        `codes` is B [n_database, K] or None; `simplify` is called before the evaluation (`Loop.finish`).
        """
        validated = self.split.validation is not None
        if validated:
            self.model_image.load_state_dict(self.selected_state["model_image"])
            codes = None if codes is None else self.selected_state["codes"]
        if simplify is not None:
            simplify()
        done = self.settings.max_iter
        query_code = self._encode(self.split.query, "query", done)
        network_code = self._encode(self.split.database, "database", done)
        databases = database_codes(codes, network_code)
        written = next(iter(databases))
        metrics = {
            kind: {ties: self._map(query_code, self.split.query.labels, code, ties) for ties in ("expected", "stable")}
            for kind, code in databases.items()
        }
        tensors = {
            "query_code": query_code,
            "database_code": databases[written],
            "query_targets": self.split.query.labels,
            "database_targets": self.split.database.labels,
        }
        self.run.save_codes(self.code_length, metrics[written]["expected"], tensors)
        self.run.save_model(self.code_length, self.model_image.state_dict())
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
            "map": metrics,
            "best": self.best,
            "topk": self.settings.topk,
            "never_drawn": int((databases[written] == 0).all(dim=1).sum()),
            "queries_without_relevant": without_relevant(self.split.query.labels, self.split.database.labels),
        }
        if validated:
            row["selected"] = self.selected
        self.run.add_result(row)
        return row

    def _evaluate(self, done: int, query_code: Tensor, codes: Tensor, kind: str) -> dict[str, float]:
        metrics = {"map": self._map(query_code, self.split.query.labels, codes)}
        if len(query_code) > 1 and bool((query_code == query_code[0]).all()):
            log.warning("All %d query codes are the same, so no ranking says anything; lower --lr", len(query_code))
        if self.split.validation is not None:
            validation_code = self._encode(self.split.validation, "validation", done)
            metrics["validation_map"] = self._map(validation_code, self.split.validation.labels, codes)
        log.info("%d bits, iteration %d: mAP of the %s codes %.4f", self.code_length, done, kind, metrics["map"])
        # A signal may stop what is above, and the resumed run repeats it: nothing is kept before it is complete.
        if metrics["map"] > self.best["expected"]:
            self.best = {"iteration": done, "expected": metrics["map"]}
        if metrics.get("validation_map", -1.0) > self.selected["validation"]:
            self.selected = {"iteration": done, "validation": metrics["validation_map"]}
            state = {name: value.detach().cpu().clone() for name, value in self.model_image.state_dict().items()}
            self.selected_state = {"model_image": state, "codes": codes.to("cpu", torch.int8)}
        return metrics

    def _show(self, row: dict[str, Any], query_code: Tensor | None, codes: Tensor | None) -> None:
        if self.board is None:
            self.board = TensorBoard(self.run.path, self.code_length, row["iteration"] - 1)
        self.board.iteration(row)
        if query_code is not None and codes is not None:  # an evaluation
            # matplotlib is slow to import, and needed only with --tensorboard.
            from plots.gallery import gallery_of, gallery_pixels

            self.board.gallery(gallery_pixels(gallery_of(self.split, query_code, codes.cpu())), row["iteration"])
        self.clock = time.perf_counter()  # the time for pictures is not training time

    def _encode(self, dataset: ImageDataset, half: str, iteration: int) -> Tensor:
        codes = encode(
            self.model_image,
            dataset,
            batch_size=self.settings.batch_size,
            device=self.run.device,
            num_workers=self.settings.num_workers,
            bar=f"{self.code_length} bits: encoding the {half}",
        )
        require_codes(codes, half, iteration)
        return codes

    def _map(self, query_code: Tensor, query_labels: Tensor, codes: Tensor, ties: str = "expected") -> float:
        return mean_average_precision(
            query_code, codes, query_labels, self.split.database.labels, self.run.device, self.settings.topk, ties=ties
        )

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self.clock = now - self.clock, now
        self.seconds += lap
        return lap


def database_codes(codes: Tensor | None, network_code: Tensor) -> dict[str, Tensor]:
    """The database codes that are evaluated, by name, [n_database, K] float32 on the CPU.

    "learned": B as released, where rows never drawn are 0; "learned_filled": those rows encoded by the network;
    "network": the whole database encoded by the network, the metric for unseen images. Without B (`codes` [n_database,
    K]) only "network"; `network_code` is the sign of the network's output [n_database, K].
    """
    if codes is None:
        return {"network": network_code}
    learned = codes.cpu().float()
    never_drawn = (learned == 0).all(dim=1, keepdim=True)  # [n_database, 1]
    return {
        "learned": learned,
        "learned_filled": torch.where(never_drawn, network_code, learned),
        "network": network_code,
    }


def without_relevant(query_labels: Tensor, database_labels: Tensor) -> int:
    """The number of queries [Q, C] that share no label with any database image [D, C]; each has AP 0."""
    return int(((query_labels > 0) & (database_labels > 0).any(dim=0)).any(dim=1).logical_not().sum())


def code_statistics(codes: Tensor) -> dict[str, Any]:
    """Bit balance and variety of codes [n, K]: {"bit_mean": K means, "distinct": share of distinct codes}."""
    return {
        "bit_mean": [round(value, 4) for value in codes.mean(dim=0).tolist()],
        "distinct": len(torch.unique(codes, dim=0)) / len(codes),
    }
