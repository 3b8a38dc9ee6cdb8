"""ADSH: Jiang & Li, "Asymmetric Deep Supervised Hashing", AAAI 2018. The direct ancestor of SCHN.

One network learns the codes of the drawn images; a discrete step learns V, the binary codes of the whole database.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modules.discrete import discrete_step, softened

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

    S̃ is the softened similarity (`modules.discrete.softened`); of the sample's, only the batch's rows are held. An
    image without labels is dissimilar to every image, itself included.

    Args:
        code: u, continuous codes of the batch [N, K].
        labels: multi-hot labels of the batch [N, C].
        rows: the database rows of the batch [N], int64.
        codes: V [n_database, K].
        database_labels: multi-hot labels [n_database, C].
        ratio: r, `modules.discrete.balance_ratio` of the sample and the database.
        gamma: γ.

    Returns:
        "similarity" and "quantisation", scalars.
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

    Ū is U at the rows Ω and 0 elsewhere. It is SCHN's step over all rows without the label and latent codes; S̃ is
    computed in blocks there.

    Args:
        codes: V [n_database, K].
        sample: Ω [n] (int64, on the CPU).
        labels: multi-hot labels of the database [n_database, C].
        image_code: U, the last continuous codes of the sample [n, K].
        gamma: γ.
    """
    unused = torch.zeros_like(image_code)
    sample_codes = torch.stack((image_code, unused, unused))  # image, label and latent codes
    outside_sample = codes.new_zeros(3, *codes.shape)
    discrete_step(codes, sample, labels, sample_codes, outside_sample, alpha=0, beta=0, gamma=gamma)
