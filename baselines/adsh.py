"""ADSH: Jiang & Li, "Asymmetric Deep Supervised Hashing", AAAI 2018. The direct ancestor of SCHN.

One network learns the codes of the drawn images; a discrete step learns V, the binary codes of the whole database.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from data import Split
from modules import image_network
from modules.discrete import balance_ratio, discrete_step, softened
from training.loop import Loop
from training.run_folder import RunFolder
from utils import distributed
from utils.seeding import seed_everything

GAMMA = 200.0  # weight of the quantisation terms


def adsh_loss_parts(
    code: Tensor,
    labels: Tensor,
    rows: Tensor,
    codes: Tensor,
    database_labels: Tensor,
    ratio: float,
    *,
    gamma: float = GAMMA,
) -> dict[str, Tensor]:
    """The loss of a batch against the whole database, by part; the loss is their sum.

        ( Σ_ij (u_i·v_j − K S̃_ij)² + γ Σ_i ‖u_i − v_Ω(i)‖² ) / (N · n_database),   j over the whole database

    `code` is u [N, K], `labels` [N, C] are multi-hot, `rows` [N] are the database rows of the batch, `codes` is V
    [n_database, K]. S̃ is the softened similarity (`modules.discrete.softened`) with r = `ratio`; only the rows of the
    batch are held. An image without labels is dissimilar to every image, itself included.
    """
    code_length, pairs = code.shape[1], len(code) * len(codes)
    similarity = softened(labels, database_labels, ratio)  # S̃ [N, n_database]
    return {
        "similarity": (code @ codes.T - code_length * similarity).square().sum() / pairs,
        "quantisation": gamma * (code - codes[rows]).square().sum() / pairs,
    }


def update_database_codes(
    codes: Tensor, sample: Tensor, labels: Tensor, image_code: Tensor, *, gamma: float = GAMMA
) -> None:
    """The discrete step over all rows of V, in place, bits in order:

        Q = K S̃ᵀ U + γ Ū,   V[:,k] = sign( Q[:,k] − V₋ₖ U₋ₖᵀ U[:,k] )

    `codes` is V [n_database, K], `sample` is Ω [n], `image_code` is U [n, K]; Ū is U at the rows Ω and 0 elsewhere. It
    is SCHN's step over all rows without the label and latent codes, which computes S̃ in blocks.
    """
    unused = torch.zeros_like(image_code)
    sample_codes = torch.stack((image_code, unused, unused))  # image, label and latent codes
    outside_sample = codes.new_zeros(3, *codes.shape)
    discrete_step(codes, sample, labels, sample_codes, outside_sample, alpha=0, beta=0, gamma=gamma)


def train(run: RunFolder, code_length: int, split: Split) -> dict[str, Any]:
    """Train one code length and write the results into the run's folder; returns the row of results.json.

    Raises:
        UserError: the weights cannot be used, a loss is not finite, or a file cannot be written.
        Interrupted: a signal has asked the run to stop; a checkpoint has been written.
    """
    settings, device = run.settings, run.device
    database = split.train  # the database, or with --protocol train-5000 images outside it
    seed_everything(settings.seed)
    labels = database.labels.to(device)  # [n_database, C]

    # ---- Network ----
    size, weights = settings.image_size, run.initial_weights(code_length)
    model_image = image_network(settings.backbone, code_length, weights=weights, image_size=size)
    model_image = model_image.to(device).to(memory_format=torch.channels_last)
    distributed.seed_dropout(settings.seed)

    # ---- Optimiser ----
    adam = partial(torch.optim.Adam, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    optimizer = adam(model_image.parameters())

    # ---- Alternating optimisation ----
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
    codes = torch.zeros(len(database), code_length, device=device)  # V
    loop = Loop(run, code_length, split, codes, model_image=model_image, optimizer=optimizer)
    loop.replay(model_image)
    for iteration, sample in loop.iterations():  # sample: Ω
        ratio = balance_ratio(labels[sample], labels)  # r

        # ---- Passes over the sample: the network learns, V is fixed ----
        for epoch in range(settings.max_epoch):
            sample_codes = torch.zeros(settings.num_samples, code_length, device=device)  # U of every drawn row
            # Every pass shuffles and crops again.
            for images, targets, rows in loop.batches(sample, iteration, epoch):  # [N, 3, S, S], [N, C], [N]
                with autocast:
                    _, code = model_image(images)  # [N, K]
                code = code.to(codes)
                losses = adsh_loss_parts(code, targets, rows, codes, labels, ratio)
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                optimizer.step()

                sample_codes[torch.searchsorted(sample, rows)] = code.detach()
                loop.step(losses)
            loop.end_pass(iteration, epoch)

        # ---- Discrete step: V learns, the network is fixed ----
        distributed.sum_over_processes(sample_codes)
        update_database_codes(codes, sample, labels, sample_codes)
        loop.end_iteration(iteration, sample)
    return loop.finish()
