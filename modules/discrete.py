"""The parts of the alternating optimisation without networks: similarities, the sample Ω, the discrete step."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.seeding import generator

BLOCK_PAIRS = 2**22  # pairs compared at once: 16 MiB of float32


def label_similarity(labels: Tensor) -> Tensor:
    """S = (y yᵀ > 0) of a batch: multi-hot labels [N, C] → [N, N] in {0, 1}, in the dtype of the labels."""
    return (labels @ labels.T > 0).to(labels.dtype)


def draw_sample(n_database: int, num_samples: int, seed: int, iteration: int) -> Tensor:
    """Ω of one iteration: `num_samples` database rows without replacement, ascending [num_samples] (int64).

    The same arguments give the same rows. The mains find the place of a row in them by `torch.searchsorted`.
    """
    order = torch.randperm(n_database, generator=generator(seed, "sample", iteration))
    return order[:num_samples].sort().values


def softened(labels: Tensor, other_labels: Tensor, ratio: float) -> Tensor:
    """The softened similarity S(1+r) − r of all pairs, S in ±1, `ratio` r from `balance_ratio`.

    Multi-hot labels [n, C] and [m, C] → [n, m], in the wider of the labels' dtype and torch's default dtype.
    """
    dtype = torch.promote_types(labels.dtype, torch.get_default_dtype())
    similar = labels.to(dtype) @ other_labels.to(dtype).T > 0  # [n, m]
    # S(1+r) − r is 1 where S = 1 and −1 − 2r where S = −1; in this form the first case has no rounding error.
    apart = torch.full((), -1.0 - 2.0 * ratio, dtype=dtype, device=similar.device)
    return torch.where(similar, torch.ones_like(apart), apart)


def similar_pairs(labels: Tensor, other_labels: Tensor) -> int:
    """The number of pairs that share a label, of multi-hot labels [n, C] and [m, C]; exact."""
    if int((labels > 0).sum(dim=1).max()) <= 1:  # one class per image: the pairs of each class
        return int((labels > 0).sum(dim=0).double() @ (other_labels > 0).sum(dim=0).double())
    # Many images have the same labels, so pairs of distinct label rows are counted, each as often as it occurs. The
    # count is exact: the number of shared labels fits into float32, and the number of pairs into float64.
    rows, count = torch.unique(labels.float(), dim=0, return_counts=True)
    others, other_count = torch.unique(other_labels.float(), dim=0, return_counts=True)
    similar = 0
    for block, times in zip(*(part.split(max(1, BLOCK_PAIRS // len(others))) for part in (rows, count)), strict=True):
        similar += int(times.double() @ ((block @ others.T > 0).double() @ other_count.double()))
    return similar


def balance_ratio(sample_labels: Tensor, database_labels: Tensor) -> float:
    """r = ΣS / Σ(1−S) over all pairs of sample [n, C] and database [n_database, C]; S = ±1.

    It is 0 where every pair is similar: S(1+r) − r is then 1 for every r.
    """
    pairs = len(sample_labels) * len(database_labels)
    similar = similar_pairs(sample_labels, database_labels)
    if similar == pairs:
        return 0.0
    return (2 * similar - pairs) / (2 * (pairs - similar))


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
    """One sweep of discrete cyclic coordinate descent over the bits of B[Ω], in place.

        r = ΣS / Σ(1−S) over the pairs of sample and database, S in ±1;   S ← S(1+r) − r
        Q = (K · S_ΩΩ)ᵀ U + γ U
        B[:,k] = sign(Q[:,k] − B₋ₖ U₋ₖᵀ U[:,k] + α U_label[:,k] + β U_latent[:,k]),   U = U_image, bits in order

    The step of ADSH (AAAI 2018) with the terms α and β of SCHN (https://doi.org/10.1145/3469877.3490583). S is computed
    in blocks: no n × n similarity is in memory. sign(0) is +1.

    Args:
        codes: B [n_database, K]; the rows Ω change.
        sample: Ω [n] (int64).
        labels: multi-hot labels of the database [n_database, C].
        sample_codes: U_image, U_label and U_latent of the sample [3, n, K].
        other_codes: ablation, the full database update of ADSH: the same of every row [3, n_database, K]. Rows outside
            Ω use these, and all rows of B change.
    """
    rows, row_codes = sample, sample_codes
    if other_codes is not None:
        rows, row_codes = torch.arange(len(codes), device=codes.device), other_codes.clone()
        row_codes[:, sample] = sample_codes
    sample_labels, image_code = labels[sample], sample_codes[0]
    ratio = balance_ratio(sample_labels, labels)
    pull = torch.empty_like(row_codes[0])
    for block in torch.arange(len(rows), device=codes.device).split(max(1, BLOCK_PAIRS // len(sample))):
        # (K · S)ᵀ U: the rows of this S are the updated rows of B, so it is already transposed.
        pull[block] = (codes.shape[1] * softened(labels[rows[block]], sample_labels, ratio)) @ image_code
    linear = pull + gamma * row_codes[0] + alpha * row_codes[1] + beta * row_codes[2]
    codes[rows] = coordinate_descent(codes[rows], linear, image_code)


def signs(values: Tensor) -> Tensor:
    """The code of real outputs: ±1, with sign(0) = +1, since 0 stands for "never encoded".

    NaN where a value is not finite (torch.sign makes 0 of NaN), for training to report.
    """
    return torch.where(values.isfinite(), values.sign() + (values == 0), torch.nan)


def coordinate_descent(codes: Tensor, linear: Tensor, image_code: Tensor) -> Tensor:
    """B[:,k] = sign(linear[:,k] − B₋ₖ U₋ₖᵀ U[:,k]) for each bit k in order.

    U₋ₖᵀ U[:,k] is column k of the K × K Gram matrix UᵀU without its entry k, so a bit costs O(mK).
    B [m, K], the terms that do not depend on B [m, K], U of the sample [n, K] → the new B [m, K].
    """
    codes = codes.clone()
    gram = image_code.T @ image_code  # [K, K]
    gram.fill_diagonal_(0)  # leaves out bit k itself
    for k in range(codes.shape[1]):
        codes[:, k] = signs(linear[:, k] - codes @ gram[:, k])
    return codes
