"""The cycle loss of both variants and the adversarial losses of TOMM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, mse_loss


def code_loss(code: Tensor, codes: Tensor, similarity: Tensor, gamma: float) -> Tensor:
    """f(U) = mean((K·S − U bᵀ)²) · 12/K + γ · mean((U − b)²), a scalar.

    Args:
        code: U, continuous codes of the batch [N, K].
        codes: b, the database codes of the same rows [N, K]; ±1, or 0 where never drawn.
        similarity: S of the batch [N, N] in {0, 1}.
        gamma: weight of the quantisation term.
    """
    code_length = codes.shape[1]
    similarity_term = mse_loss(code @ codes.T, code_length * similarity)
    return similarity_term * (12 / code_length) + gamma * mse_loss(code, codes)


def cycle_loss_parts(
    latent_code: Tensor,
    image_code: Tensor,
    label_code: Tensor,
    image_code_rec: Tensor,
    label_code_rec: Tensor,
    codes: Tensor,
    similarity: Tensor,
    gamma: float,
    *,
    signed: bool = False,
    detach_targets: bool = False,
    cycle_terms: bool = True,
) -> dict[str, Tensor]:
    """The five terms of the cycle loss by name; arguments as in `cycle_loss`, and three ablations.

    Args:
        signed: dissimilar pairs have the target −K in place of 0 (S in ±1).
        detach_targets: the reconstructions do not pull U_image and U_label towards themselves.
        cycle_terms: False leaves the two reconstruction terms out.
    """
    if signed:
        similarity = 2 * similarity - 1
    parts = {
        "image": code_loss(image_code, codes, similarity, gamma),
        "label": code_loss(label_code, codes, similarity, gamma),
        "latent": code_loss(latent_code, codes, similarity, gamma),
    }
    if cycle_terms:
        # The targets are not detached in the papers: the reconstructions also pull the codes towards themselves.
        if detach_targets:
            image_code, label_code = image_code.detach(), label_code.detach()
        parts["image_rec"] = mse_loss(image_code_rec, image_code)
        parts["label_rec"] = mse_loss(label_code_rec, label_code)
    return parts


def cycle_loss(
    latent_code: Tensor,
    image_code: Tensor,
    label_code: Tensor,
    image_code_rec: Tensor,
    label_code_rec: Tensor,
    codes: Tensor,
    similarity: Tensor,
    gamma: float,
) -> Tensor:
    """f(U_image) + f(U_label) + f(U_latent) + mean((U_image_rec − U_image)²) + mean((U_label_rec − U_label)²).

    Args:
        latent_code, image_code, label_code, image_code_rec, label_code_rec: continuous codes [N, K].
        codes: b, the database codes of the batch [N, K].
        similarity: S of the batch [N, N] in {0, 1}.
        gamma: weight of the quantisation terms.

    Returns:
        A scalar.
    """
    parts = cycle_loss_parts(
        latent_code, image_code, label_code, image_code_rec, label_code_rec, codes, similarity, gamma
    )
    return torch.stack(list(parts.values())).sum()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy of real → 1 plus that of fake → 0, each a mean over the 2N probabilities."""
    return binary_cross_entropy(real, torch.ones_like(real)) + binary_cross_entropy(fake, torch.zeros_like(fake))


def generator_loss(fake: Tensor) -> Tensor:
    """Binary cross-entropy of fake → 1, a mean over the 2N probabilities."""
    return binary_cross_entropy(fake, torch.ones_like(fake))
