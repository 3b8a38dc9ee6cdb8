"""A plain transcription of the training step of docs/method.md: the reference for correctness and for speed.

It has default Adam, every formula in full and, for TOMM, a second full forward pass with its graph.
tests/test_recipe.py compares the mains with it; benchmarks/step.py compares their times with its time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Networks:
    """The networks of one variant; `discriminator` is None for MM Asia."""

    model_image: nn.Module
    model_label: nn.Module
    model_cycle: nn.Module
    discriminator: nn.Module | None = None
    lr: float = 4e-5
    weight_decay: float = 1e-5
    optimizers: dict[str, torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        def adam(*networks: nn.Module) -> torch.optim.Optimizer:
            parameters = [parameter for network in networks for parameter in network.parameters()]
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)

        self.optimizers = {"all": adam(self.model_image, self.model_label, self.model_cycle)}
        if self.discriminator is not None:
            self.optimizers |= {"d": adam(self.discriminator), "g": adam(self.model_cycle)}

    def forward(self, images: Tensor, labels: Tensor, similarity: Tensor) -> tuple[Tensor, ...]:
        """U_image, U_label, U_latent, U_image_rec, U_label_rec, [N, K] each."""
        image_features, u_image = self.model_image(images)
        label_features, u_label = self.model_label(labels)
        u_latent, _, u_image_rec, u_label_rec = self.model_cycle(
            image_features.detach(), label_features.detach(), similarity
        )
        return u_image, u_label, u_latent, u_image_rec, u_label_rec


def plain_loss(outputs: tuple[Tensor, ...], b: Tensor, similarity: Tensor, gamma: float) -> Tensor:
    """The cycle loss, as in the paper."""
    u_image, u_label, u_latent, u_image_rec, u_label_rec = outputs
    bits = b.shape[1]
    loss = torch.zeros((), dtype=b.dtype, device=b.device)
    for u in (u_image, u_label, u_latent):
        loss = loss + ((bits * similarity - u @ b.t()) ** 2).mean() * 12 / bits + gamma * ((u - b) ** 2).mean()
    return loss + ((u_image_rec - u_image) ** 2).mean() + ((u_label_rec - u_label) ** 2).mean()


def plain_step(
    networks: Networks, images: Tensor, labels: Tensor, b: Tensor, gamma: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """One mini-batch: the cycle step and, where there is a discriminator, the adversarial step.

    Returns:
        The cycle loss, and the codes (U_image, U_label, U_latent) that the discrete step will use.
    """
    similarity = (labels @ labels.t() > 0).to(b.dtype)
    outputs = networks.forward(images, labels, similarity)
    loss = plain_loss(outputs, b, similarity, gamma)
    networks.optimizers["all"].zero_grad()
    loss.backward()
    networks.optimizers["all"].step()
    if networks.discriminator is not None:
        outputs = networks.forward(images, labels, similarity)
        plain_adversarial_step(networks, networks.discriminator, outputs)
    u_image, u_label, u_latent = (output.detach() for output in outputs[:3])
    return loss.detach(), (u_image, u_label, u_latent)


def plain_adversarial_step(networks: Networks, discriminator: nn.Module, outputs: tuple[Tensor, ...]) -> None:
    """D: real → 1 and fake → 0, all detached. G: fake → 1, stepping model_cycle only."""
    u_image, u_label, _, u_image_rec, u_label_rec = outputs
    real = discriminator(u_image.detach(), u_label.detach())
    fake = discriminator(u_image_rec.detach(), u_label_rec.detach())
    loss_d = -real.log().clamp(min=-100).mean() - (1 - fake).log().clamp(min=-100).mean()
    networks.optimizers["d"].zero_grad()
    loss_d.backward()
    networks.optimizers["d"].step()
    loss_g = -discriminator(u_image_rec, u_label_rec).log().clamp(min=-100).mean()
    networks.optimizers["g"].zero_grad()
    loss_g.backward()
    networks.optimizers["g"].step()


def plain_discrete_step(
    b: Tensor,
    codes: tuple[Tensor, Tensor, Tensor],
    sample_labels: Tensor,
    database_labels: Tensor,
    sample: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """B[Ω] after the discrete step, with the whole n × n_database similarity in memory."""
    u, u_label, u_latent = codes
    bits = b.shape[1]
    similarity = (sample_labels @ database_labels.t() > 0).to(b.dtype) * 2 - 1
    ratio = similarity.sum() / (1 - similarity).sum()
    similarity = (similarity * (1 + ratio) - ratio)[:, sample]
    q = (bits * similarity).t() @ u + gamma * u
    b = b.clone()
    for k in range(bits):
        rest = [j for j in range(bits) if j != k]
        pull = b[:, rest] @ u[:, rest].t() @ u[:, k]
        b[:, k] = torch.sign(q[:, k] - pull + alpha * u_label[:, k] + beta * u_latent[:, k])
    return b
