"""What the alternating optimisation needs beside the networks: similarities, the sample Ω and the discrete step."""

from __future__ import annotations

import torch
from torch import Tensor

from .seeding import generator

BLOCK_PAIRS = 2**22  # pairs counted at once: 16 MiB of float32


def label_similarity(labels: Tensor) -> Tensor:
    """S = (y yᵀ > 0) of a batch: multi-hot labels [N, C] → [N, N] in {0, 1}, in the labels' dtype."""
    return (labels @ labels.T > 0).to(labels.dtype)


def draw_sample(n_database: int, num_samples: int, seed: int, iteration: int) -> Tensor:
    """Ω of one iteration: `num_samples` database rows without replacement, ascending [num_samples] (int64).

    A function of its arguments alone. Ascending, so that `torch.searchsorted` finds a row's place; the discrete step
    treats every row alike and the mini-batches are shuffled anyway.
    """
    order = torch.randperm(n_database, generator=generator(seed, "sample", iteration))
    return order[:num_samples].sort().values


def soft_similarity(sample_labels: Tensor, database_labels: Tensor, sample_index: Tensor) -> Tensor:
    """The softened similarity S_ΩΩ of the sample, balanced over the whole database.

    With S in ±1 over all n × n_database pairs, r = ΣS / Σ(1−S) and S ← S(1+r) − r. The sum is counted in blocks, so
    nothing of size n × n_database is held.

    Args:
        sample_labels: multi-hot labels of the sample [n, C].
        database_labels: multi-hot labels of the whole database [n_database, C].
        sample_index: Ω, the sample's rows in the database [n].

    Returns:
        [n, n], in the wider of the labels' dtype and torch's default dtype.
    """
    dtype = torch.promote_types(sample_labels.dtype, torch.get_default_dtype())
    similar = sample_labels.to(dtype) @ database_labels[sample_index].to(dtype).T > 0  # [n, n]
    ratio = balance_ratio(sample_labels, database_labels)
    # S(1+r) − r is 1 where S = 1 and −1 − 2r where S = −1, without rounding in the first case.
    apart = torch.tensor(-1.0 - 2.0 * ratio, dtype=dtype, device=similar.device)
    return torch.where(similar, torch.ones_like(apart), apart)


def balance_ratio(sample_labels: Tensor, database_labels: Tensor) -> float:
    """r = ΣS / Σ(1−S) over all pairs of sample [n, C] and database [n_database, C]; S = ±1.

    0 where every pair is similar: S(1+r) − r is then 1 whatever r is.
    """
    pairs = len(sample_labels) * len(database_labels)
    # Pairs are counted exactly: a label count is a small whole number, which float32 holds.
    sample, database = sample_labels.float(), database_labels.float()
    rows = max(1, BLOCK_PAIRS // len(database))
    similar = sum(int((block @ database.T > 0).sum()) for block in sample.split(rows))
    if similar == pairs:
        return 0.0
    return (2 * similar - pairs) / (2 * (pairs - similar))


def update_codes(
    codes: Tensor,
    image_code: Tensor,
    label_code: Tensor,
    latent_code: Tensor,
    similarity: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """One sweep of discrete cyclic coordinate descent over the bits of B[Ω] (the ADSH/SCHN discrete step).

        Q = (K · S)ᵀ U + γ U
        B[:,k] = sign(Q[:,k] − B₋ₖ U₋ₖᵀ U[:,k] + α U_label[:,k] + β U_latent[:,k]),   U = U_image, bits in order

    U₋ₖᵀ U[:,k] is a column of the K × K Gram matrix UᵀU without its k-th entry, so a bit costs O(nK) and nothing of
    size n × n but S is held.

    Args:
        codes: B[Ω] before the step [n, K]; not changed.
        image_code, label_code, latent_code: the last continuous codes of the sample [n, K].
        similarity: softened S_ΩΩ [n, n].
        alpha, beta: weights of the label and latent codes.
        gamma: weight of the quantisation term.

    Returns:
        B[Ω] after the step [n, K] in {−1, +1} (0 only where the argument of sign is exactly 0).
    """
    codes = codes.clone()
    code_length = codes.shape[1]
    linear = (code_length * similarity).T @ image_code + gamma * image_code + alpha * label_code + beta * latent_code
    gram = image_code.T @ image_code  # [K, K]
    gram.fill_diagonal_(0)  # leaves bit k itself out
    for k in range(code_length):
        codes[:, k] = torch.sign(linear[:, k] - codes @ gram[:, k])
    return codes
