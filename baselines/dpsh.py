"""DPSH: Li, Wang & Kang, "Feature Learning Based Deep Supervised Hashing with Pairwise Labels", IJCAI 2016."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class DPSH(nn.Module):
    """Likelihood of the pairs of a batch with every row seen so far; called as `baselines` describes.

    With θ_ij = ½ z_i·z_j, i in the batch and j in a memory bank of the last z of every row:

        loss = mean( log(1 + e^θ) − S θ ) + η mean( (z − sign z)² )

    The rows of the batch enter the bank before they are compared with it, as constants. Rows not seen yet have no part
    in the loss. The bank is part of the state dict. `database_labels` [n, C] are those of the training pool.
    """

    database_labels: Tensor
    bank: Tensor
    seen: Tensor

    def __init__(self, code_length: int, database_labels: Tensor, *, eta: float = 0.1) -> None:
        super().__init__()
        self.eta = eta
        self.register_buffer("database_labels", database_labels, persistent=False)
        self.register_buffer("bank", database_labels.new_zeros(len(database_labels), code_length))
        self.register_buffer("seen", torch.zeros(len(database_labels), dtype=torch.bool))

    def forward(self, hash_output: Tensor, labels: Tensor, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Parts "pairs" and "quantisation"; `progress` is not used."""
        self.bank[rows] = hash_output.detach()
        self.seen[rows] = True
        product = hash_output @ self.bank[self.seen].T / 2  # θ [N, rows seen]
        similarity = (labels @ self.database_labels[self.seen].T > 0).to(product)  # S
        return {
            # Cross-entropy with logits is log(1 + e^θ) − S θ in a form that does not overflow.
            "pairs": binary_cross_entropy_with_logits(product, similarity),
            "quantisation": self.eta * (hash_output - hash_output.sign()).square().mean(),
        }
