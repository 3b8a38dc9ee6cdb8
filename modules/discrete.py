"""What the alternating optimisation needs beside the networks: similarities, the sample Ω and the discrete step."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.seeding import generator

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
    ratio = balance_ratio(sample_labels, database_labels)
    return softened(sample_labels, database_labels[sample_index], ratio)


def softened(labels: Tensor, other_labels: Tensor, ratio: float) -> Tensor:
    """S(1+r) − r of all pairs: multi-hot labels [n, C] and [m, C] → [n, m]; dtype as in `soft_similarity`."""
    dtype = torch.promote_types(labels.dtype, torch.get_default_dtype())
    similar = labels.to(dtype) @ other_labels.to(dtype).T > 0  # [n, m]
    # S(1+r) − r is 1 where S = 1 and −1 − 2r where S = −1, without rounding in the first case.
    apart = torch.tensor(-1.0 - 2.0 * ratio, dtype=dtype, device=similar.device)
    return torch.where(similar, torch.ones_like(apart), apart)


def balance_ratio(sample_labels: Tensor, database_labels: Tensor) -> float:
    """r = ΣS / Σ(1−S) over all pairs of sample [n, C] and database [n_database, C]; S = ±1.

    0 where every pair is similar: S(1+r) − r is then 1 whatever r is.
    """
    pairs = len(sample_labels) * len(database_labels)
    # Many images have the same labels: pairs of distinct label rows are counted, each as often as it occurs. Exactly: a
    # shared label count is a small whole number, which float32 holds, and float64 holds the number of pairs.
    sample, sample_count = torch.unique(sample_labels.float(), dim=0, return_counts=True)
    database, database_count = torch.unique(database_labels.float(), dim=0, return_counts=True)
    similar = 0
    for rows, count in zip(
        *(part.split(max(1, BLOCK_PAIRS // len(database))) for part in (sample, sample_count)), strict=True
    ):
        similar += int(count.double() @ ((rows @ database.T > 0).double() @ database_count.double()))
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

    Args:
        codes: B[Ω] before the step [n, K]; not changed.
        image_code, label_code, latent_code: the last continuous codes of the sample [n, K].
        similarity: softened S_ΩΩ [n, n].
        alpha, beta: weights of the label and latent codes.
        gamma: weight of the quantisation term.

    Returns:
        B[Ω] after the step [n, K] in {−1, +1} (0 only where the argument of sign is exactly 0).
    """
    pull = (codes.shape[1] * similarity).T @ image_code
    linear = pull + gamma * image_code + alpha * label_code + beta * latent_code
    return coordinate_descent(codes, linear, image_code)


def discrete_step(
    codes: Tensor,
    sample: Tensor,
    labels: Tensor,
    sample_codes: Tensor,
    other_codes: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> None:
    """`update_codes` with `soft_similarity` on B in place, in blocks: no n × n similarity is held.

    Args:
        codes: B [n_database, K]; the rows Ω change.
        sample: Ω [n] (int64, on the CPU).
        labels: multi-hot labels of the database [n_database, C].
        sample_codes: U_image, U_label and U_latent of the sample [3, n, K].
        other_codes: an ablation, the full database update of ADSH: these three of every row [3, n_database, K]; those
            outside Ω are taken from here and their rows of B change too.
        alpha, beta, gamma: as in `update_codes`.
    """
    rows, row_codes = sample, sample_codes
    if other_codes is not None:
        rows, row_codes = torch.arange(len(codes)), other_codes.clone()
        row_codes[:, sample] = sample_codes
    sample_labels, image_code = labels[sample], sample_codes[0]
    ratio = balance_ratio(sample_labels, labels)
    pull = torch.empty_like(row_codes[0])
    for block in torch.arange(len(rows)).split(max(1, BLOCK_PAIRS // len(sample))):
        # Transposed as in (K · S)ᵀ U: a line of S is an updated row here.
        pull[block] = (codes.shape[1] * softened(labels[rows[block]], sample_labels, ratio)) @ image_code
    linear = pull + gamma * row_codes[0] + alpha * row_codes[1] + beta * row_codes[2]
    codes[rows] = coordinate_descent(codes[rows], linear, image_code)


def coordinate_descent(codes: Tensor, linear: Tensor, image_code: Tensor) -> Tensor:
    """B[:,k] = sign(linear[:,k] − B₋ₖ U₋ₖᵀ U[:,k]) for each bit k in order.

    U₋ₖᵀ U[:,k] is a column of the K × K Gram matrix UᵀU without its k-th entry, so a bit costs O(mK).

    Args:
        codes: B before the step [m, K]; not changed.
        linear: what does not depend on B [m, K].
        image_code: U of the sample [n, K].
    """
    codes = codes.clone()
    gram = image_code.T @ image_code  # [K, K]
    gram.fill_diagonal_(0)  # leaves bit k itself out
    for k in range(codes.shape[1]):
        codes[:, k] = torch.sign(linear[:, k] - codes @ gram[:, k])
    return codes
