"""The cycle loss of both variants and the adversarial losses of TOMM (docs/method.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, mse_loss


def code_loss(code: Tensor, codes: Tensor, similarity: Tensor, gamma: float) -> Tensor:
    """f(U) = mean((K·S − U bᵀ)²) · 12/K + γ · mean((U − b)²), a scalar.

    `code` U and `codes` b, the database codes of the same rows, ±1, or 0 in rows that were never drawn: [N, K];
    `similarity` S [N, N] in {0, 1}.
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
    *,
    gamma: float,
    signed: bool = False,
    detach_targets: bool = False,
    cycle_terms: bool = True,
) -> dict[str, Tensor]:
    """The five terms of the cycle loss by name; the loss is their sum (https://doi.org/10.1145/3469877.3490583).

    f(U_image) + f(U_label) + f(U_latent) + mean((U_image_rec − U_image)²) + mean((U_label_rec − U_label)²)

    All codes are [N, K], S is [N, N] in {0, 1}. The names are "image", "label", "latent", "image_rec" and "label_rec".

    Args:
        signed: ablation: the target of dissimilar pairs is −K instead of 0 (S in ±1).
        detach_targets: ablation: no gradient reaches U_image and U_label from the reconstruction terms.
        cycle_terms: False, an ablation, leaves out the two reconstruction terms.
    """
    if signed:
        similarity = 2 * similarity - 1
    parts = {
        "image": code_loss(image_code, codes, similarity, gamma),
        "label": code_loss(label_code, codes, similarity, gamma),
        "latent": code_loss(latent_code, codes, similarity, gamma),
    }
    if cycle_terms:
        # The papers do not detach the targets: the reconstructions also pull the codes towards themselves.
        if detach_targets:
            image_code, label_code = image_code.detach(), label_code.detach()
        parts["image_rec"] = mse_loss(image_code_rec, image_code)
        parts["label_rec"] = mse_loss(label_code_rec, label_code)
    return parts


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy with target 1 for `real` plus that with target 0 for `fake`; probabilities [2N] → scalar."""
    return _cross_entropy(real, torch.ones_like(real)) + _cross_entropy(fake, torch.zeros_like(fake))


def generator_loss(fake: Tensor) -> Tensor:
    """Binary cross-entropy with target 1 for `fake`; probabilities [2N] → scalar."""
    return _cross_entropy(fake, torch.ones_like(fake))


def _cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    # torch refuses NaN: on a GPU its assertion ends the process, and all others that share the GPU by MPS. Here the
    # loss becomes NaN, which training reports (`Progress.end_pass`); otherwise value and gradient are torch's.
    number = torch.nan_to_num(probability, nan=0.5)
    return binary_cross_entropy(number, target) + (probability - number).detach().sum()
