"""DPSH, HashNet, CSQ, GreedyHash and OrthoHash: one recipe, which differs in the loss alone.

The network encodes queries and database alike; no codes of the database are learned.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from baselines.csq import CSQ
from baselines.dpsh import DPSH
from baselines.greedyhash import GreedyHash
from baselines.hashnet import HashNet
from baselines.orthohash import BatchNorm, OrthoHash, fold_batch_norm
from data import Split
from modules import image_network
from modules.discrete import signs
from training.loop import Loop
from training.run_folder import RunFolder
from training.settings import Settings
from utils import distributed
from utils.errors import UserError
from utils.seeding import seed_everything

METHODS = ("dpsh", "hashnet", "csq", "greedyhash", "orthohash")


def loss_of(settings: Settings, code_length: int, split: Split) -> nn.Module:
    """The loss of `settings.method`, one of `METHODS`, with the paper's weights; `baselines` says how it is called."""
    num_classes, seed = split.num_classes, settings.seed
    if settings.method == "dpsh":
        return DPSH(code_length, split.train.labels)
    if settings.method == "hashnet":
        return HashNet()
    if settings.method == "csq":
        return CSQ(code_length, num_classes, seed=seed)
    if settings.method == "greedyhash":
        return GreedyHash(code_length, num_classes)
    return OrthoHash(code_length, num_classes, seed=seed, margin=settings.margin)


def train(run: RunFolder, code_length: int, split: Split) -> dict[str, Any]:
    """Train one code length and write the results into the run's folder; returns the row of results.json.

    Raises:
        UserError: there are several processes, or as in the mains.
        Interrupted: a signal has asked the run to stop; a checkpoint has been written.
    """
    settings, device = run.settings, run.device
    if distributed.size() > 1:  # DPSH's memory bank and OrthoHash's batch norm would differ between the processes
        raise UserError(f"--method {settings.method}: trains in one process; start it with python, not torchrun.")
    seed_everything(settings.seed)

    # ---- Network: the initial weights are those of every other method with this seed ----
    size, weights = settings.image_size, run.initial_weights(code_length)
    model_image = image_network(settings.backbone, code_length, weights=weights, image_size=size)
    # Trained without the final tanh, which has no weights and keeps the sign: the losses need its input z.
    model_image.hash_layer[1] = BatchNorm(code_length) if settings.method == "orthohash" else nn.Identity()
    model_image = model_image.to(device).to(memory_format=torch.channels_last)
    loss = loss_of(settings, code_length, split).to(device)

    # ---- Optimiser ----
    adam = partial(torch.optim.Adam, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    optimizer = adam([*model_image.parameters(), *loss.parameters()])

    # ---- Training ----
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
    loop = Loop(run, code_length, split, None, model_image=model_image, loss=loss, optimizer=optimizer)
    loop.replay(model_image)
    for iteration, sample in loop.iterations():  # sample: the rows drawn in this iteration
        for epoch in range(settings.max_epoch):
            progress = (iteration * settings.max_epoch + epoch) / (settings.max_iter * settings.max_epoch)
            sample_codes = torch.zeros(settings.num_samples, code_length, device=device)  # of every drawn row
            # Every pass shuffles and crops again.
            for images, targets, rows in loop.batches(sample, iteration, epoch):  # [N, 3, S, S], [N, C], [N]
                with autocast:
                    _, hash_output = model_image(images)  # z [N, K]
                hash_output = hash_output.to(targets)
                losses = loss(hash_output, targets, rows, progress)
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                optimizer.step()

                sample_codes[torch.searchsorted(sample, rows)] = signs(hash_output.detach())
                loop.step(losses)
            loop.end_pass(iteration, epoch)
        loop.end_iteration(iteration, sample, sample_codes)

    def fold() -> None:
        """The trained network has the layers that `image_network` gives it."""
        if settings.method == "orthohash":
            model_image.hash_layer[0] = fold_batch_norm(*model_image.hash_layer)
        model_image.hash_layer[1] = nn.Tanh()

    return loop.finish(simplify=fold)
