"""SCHN, MM Asia 2021 (https://doi.org/10.1145/3469877.3490583): the whole recipe.

Three networks learn continuous codes of the drawn images, of their labels and of their similarity graph; a discrete
step turns them into B, the binary codes of the database. docs/method.md has the formulas. Run it through run.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from data import Split
from data.data_loader import train_batches
from modules import MLP, CycleNet, cycle_loss_parts, image_network
from utils import distributed
from utils.checkpoint import Checkpoint
from utils.devices import Precision
from utils.discrete import discrete_step, draw_sample, label_similarity
from utils.encode import network_codes
from utils.progress import Progress
from utils.report import Report
from utils.run_folder import RunFolder
from utils.seeding import seed_everything
from utils.settings import Settings


def train(settings: Settings, code_length: int, split: Split, run: RunFolder) -> dict[str, Any]:
    """Train one code length and write what it leaves into the run's folder; returns its row of results.json.

    Raises:
        UserError: unusable weights, a loss that is no longer finite, or a folder that can no longer be written to.
    """
    seed_everything(settings.seed)
    device, database = run.device, split.database
    labels = database.labels.to(device)  # [n_database, C]

    # ---- Networks ----
    weights = None if settings.weights == "none" else settings.weights
    model_image = image_network(settings.backbone, code_length, weights=weights, image_size=settings.image_size)
    model_image = model_image.to(device).to(memory_format=torch.channels_last)
    model_label = MLP(split.num_classes, code_length).to(device)
    model_cycle = CycleNet(
        code_length,
        variant="mmasia",
        image_dim=model_image.feature_dim,
        latent=settings.latent,
        adjacency=settings.adjacency,
    ).to(device)
    distributed.seed_dropout(settings.seed)

    # ---- Optimisers ----
    adam = partial(torch.optim.Adam, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    optimizer = adam([*model_image.parameters(), *model_label.parameters(), *model_cycle.parameters()])

    # ---- Loss: as published, unless an ablation is asked for ----
    cycle_losses = partial(
        cycle_loss_parts,
        gamma=settings.gamma,
        signed=settings.similarity == "signed",
        detach_targets=settings.detach_targets,
        cycle_terms=not settings.no_cycle_terms,
    )

    # ---- Alternating optimisation ----
    compute = Precision(settings.precision, device)
    run.open()
    report = Report(run, settings, code_length, split, model_image)
    codes = torch.zeros(len(database), code_length, device=device)  # B; rows never drawn stay 0
    checkpoint = Checkpoint(
        run,
        code_length,
        codes,
        model_image=model_image,
        model_label=model_label,
        model_cycle=model_cycle,
        optimizer=optimizer,
        report=report,
    )
    done = checkpoint.restore()
    with Progress(settings, code_length, done) as progress:
        for iteration in range(done, settings.max_iter):
            sample = draw_sample(len(database), settings.num_samples, settings.seed, iteration)  # Ω, ascending
            # ---- Passes over the sample: the networks learn, B is fixed ----
            for epoch in range(settings.max_epoch):
                # U_image, U_label and U_latent of every drawn row: each pass fills them all anew.
                sample_codes = torch.zeros(3, settings.num_samples, code_length, device=device)
                batches = train_batches(
                    database,
                    sample,
                    batch_size=settings.batch_size,
                    key=(settings.seed, "batches", iteration, epoch),  # every pass shuffles and crops afresh
                    augment=settings.augment,
                    device=device,
                    num_workers=settings.num_workers,
                    channels_last=True,
                    share=distributed.share(),
                )
                for images, targets, rows in batches:  # [N, 3, S, S], [N, C], [N]
                    similarity = label_similarity(targets)  # [N, N]

                    # ---- Cycle step ----
                    image_features, image_code = compute(model_image, images)  # [N, 4096], [N, K]
                    label_features, label_code = compute(model_label, targets)  # [N, 512], [N, K]
                    latent_code, _, image_code_rec, label_code_rec = compute(
                        model_cycle, image_features, label_features, similarity
                    )  # [N, K], Z, [N, K], [N, K]
                    losses = cycle_losses(
                        latent_code,
                        image_code,
                        label_code,
                        image_code_rec,
                        label_code_rec,
                        codes[rows],  # b, [N, K]
                        similarity,
                    )
                    optimizer.zero_grad()
                    torch.stack(list(losses.values())).sum().backward()
                    optimizer.step()

                    place = torch.searchsorted(sample, rows)
                    sample_codes[:, place] = torch.stack((image_code, label_code, latent_code)).detach()
                    progress.step(losses)
                means = progress.end_pass(iteration, epoch)

            # ---- Discrete step: B learns, the networks are fixed ----
            distributed.sum_over_processes(sample_codes)
            others = network_codes(model_image, model_label, database, run) if settings.update_all_rows else None
            discrete_step(
                codes, sample, labels, sample_codes, others,
                alpha=settings.alpha, beta=settings.beta, gamma=settings.gamma,
            )  # fmt: skip
            report.iteration(iteration, codes, sample, means)
            checkpoint.save(iteration)
    return report.finish(codes)
