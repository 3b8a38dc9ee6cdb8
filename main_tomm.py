"""SCHN with a discriminator, TOMM 18(2s), 2022 (https://doi.org/10.1145/3532519): the whole method.

Three networks learn continuous codes of the drawn images, of their labels and of their similarity graph; a discrete
step turns them into B, the binary codes of the database. docs/method.md has the formulas. Run it through run.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from data import Split
from modules import (
    MLP,
    CycleNet,
    ReconstructionDiscriminator,
    cycle_loss_parts,
    discriminator_loss,
    generator_loss,
    image_network,
)
from modules.discrete import discrete_step, label_similarity
from training.loop import Loop
from training.network_codes import network_codes
from training.run_folder import RunFolder
from utils import distributed
from utils.seeding import seed_everything


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

    # ---- Networks ----
    size, weights = settings.image_size, run.initial_weights(code_length)
    model_image = image_network(settings.backbone, code_length, weights=weights, image_size=size)
    model_image = model_image.to(device).to(memory_format=torch.channels_last)
    model_label = MLP(split.num_classes, code_length).to(device)
    model_cycle = CycleNet(
        code_length,
        variant="tomm",
        image_dim=model_image.feature_dim,
        latent=settings.latent,
        adjacency=settings.adjacency,
    ).to(device)
    discriminator = ReconstructionDiscriminator(code_length).to(device)
    distributed.seed_dropout(settings.seed)

    # ---- Optimisers ----
    adam = partial(torch.optim.Adam, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    optimizer = adam([*model_image.parameters(), *model_label.parameters(), *model_cycle.parameters()])
    optimizer_d = adam(discriminator.parameters())
    optimizer_g = adam(model_cycle.parameters())
    schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=settings.milestones, gamma=1 / 5)
    schedule_d, schedule_g = schedule(optimizer_d), schedule(optimizer_g)

    # ---- Loss: as published, unless an ablation is asked for ----
    cycle_losses = partial(
        cycle_loss_parts,
        gamma=settings.gamma,
        signed=settings.similarity == "signed",
        detach_targets=settings.detach_targets,
        cycle_terms=not settings.no_cycle_terms,
    )

    # ---- Iterations, evaluation and checkpoints around them ----
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
    codes = torch.zeros(len(database), code_length, device=device)  # B; rows never drawn stay 0
    loop = Loop(
        run,
        code_length,
        split,
        codes,
        model_image=model_image,
        model_label=model_label,
        model_cycle=model_cycle,
        optimizer=optimizer,
        discriminator=discriminator,
        optimizer_d=optimizer_d,
        optimizer_g=optimizer_g,
        schedule_d=schedule_d,
        schedule_g=schedule_g,
    )

    # ---- A mini-batch ----
    def step(images: Tensor, targets: Tensor, b: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Images [N, 3, S, S], labels [N, C] and codes [N, K] of a mini-batch: the networks learn.

        Returns the losses, and U_image, U_label and U_latent, [3, N, K].
        """
        similarity = label_similarity(targets)  # [N, N]

        # ---- Cycle step ----
        with autocast:
            image_features, image_code = model_image(images)  # [N, F], [N, K]
            label_features, label_code = model_label(targets)  # [N, 512], [N, K]
            latent_code, _, image_code_rec, label_code_rec = model_cycle(
                image_features, label_features, similarity
            )  # [N, K], Z, [N, K], [N, K]
        losses = cycle_losses(
            latent_code.to(codes),  # float32, also after bfloat16
            image_code.to(codes),
            label_code.to(codes),
            image_code_rec.to(codes),
            label_code_rec.to(codes),
            b,
            similarity,
        )
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

        # ---- Adversarial step: forward again with the new weights and new dropout ----
        if not settings.no_discriminator:
            with autocast, torch.no_grad():  # the features enter model_cycle detached: no graph is needed here
                image_features, image_code = model_image(images)
                label_features, label_code = model_label(targets)
            with autocast:
                latent_code, _, image_code_rec, label_code_rec = model_cycle(image_features, label_features, similarity)
            generated = image_code_rec.to(codes), label_code_rec.to(codes)
            real = discriminator(image_code.to(codes), label_code.to(codes))  # [2N]
            fake = discriminator(*(code.detach() for code in generated))  # [2N]
            losses["discriminator"] = discriminator_loss(real, fake)
            optimizer_d.zero_grad()
            losses["discriminator"].backward()
            optimizer_d.step()
            losses["generator"] = generator_loss(discriminator(*generated))
            optimizer_g.zero_grad()
            losses["generator"].backward(inputs=list(model_cycle.parameters()))  # not into D
            optimizer_g.step()
        return losses, torch.stack((image_code, label_code, latent_code)).detach().to(codes)

    # ---- Alternating optimisation ----
    update = partial(discrete_step, alpha=settings.alpha, beta=settings.beta, gamma=settings.gamma)
    train_step = loop.recorded(step, optimizer, optimizer_d, optimizer_g)
    for iteration, sample in loop.iterations():  # sample: Ω
        # ---- Passes over the sample: the networks learn, B is fixed ----
        for epoch in range(settings.max_epoch):
            # U_image, U_label and U_latent of every drawn row; each pass fills them again.
            sample_codes = torch.zeros(3, settings.num_samples, code_length, device=device)
            # Every pass repeats the same shuffle and crops, unless an ablation asks for new ones.
            key = (iteration, epoch) if settings.fresh_batches else (iteration,)
            for images, targets, rows in loop.batches(sample, *key):  # [N, 3, S, S], [N, C], [N]
                losses, u = train_step(images, targets, codes[rows])
                sample_codes[:, torch.searchsorted(sample, rows)] = u
                loop.step(losses)
            loop.end_pass(iteration, epoch)

        # ---- Discrete step: B learns, the networks are fixed ----
        distributed.sum_over_processes(sample_codes)
        others = network_codes(model_image, model_label, database, run) if settings.update_all_rows else None
        update(codes, sample, labels, sample_codes, others)
        if not settings.no_discriminator:
            schedule_d.step()
            schedule_g.step()
        loop.end_iteration(iteration, sample)
    return loop.finish()
