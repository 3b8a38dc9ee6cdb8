"""The multilayer perceptron of the label network, the reconstructions and the discriminator."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """in_dim → hidden_dim → feature_dim with a ReLU after each, then tanh(Linear → code_length).

    As `model_label` it maps multi-hot labels [N, C] to (F_label [N, 512], U_label [N, K]).
    """

    def __init__(self, in_dim: int, code_length: int, *, hidden_dim: int = 1024, feature_dim: int = 512) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, feature_dim),
            nn.ReLU(inplace=True),
        )
        self.hash_layer = nn.Sequential(nn.Linear(feature_dim, code_length), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, in_dim] → (features [N, feature_dim], code [N, code_length] in (-1, 1))."""
        features = self.net(x)
        return features, self.hash_layer(features)
