"""`model_cycle`: attention, similarity graph and reconstruction networks, connected as in either paper."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from modules.gcn.models import GraphHash
from modules.mlp import MLP


class CycleNet(nn.Module):
    """Fuse image and label features, pass them through the similarity graph of the batch, reconstruct both codes.

    Every attention runs over the batch: its N samples are the sequence. Both variants fuse in the same way
    (q = k = F_label, v = F_image). Their reconstruction branches have different inputs:

        branch   MM Asia 2021 ("mmasia")    TOMM 2022 ("tomm")
        image    q = k = F_label, v = Z     q = k = Z, v = F_label
        label    q = k = F_image, v = Z     q = k = Z, v = F_image

    Sources: https://doi.org/10.1145/3469877.3490583 (MM Asia), https://doi.org/10.1145/3532519 (TOMM).

    `image_dim`, `label_dim` and `latent_dim` are the widths of F_image, F_label and Z. The reconstruction MLPs have the
    widths `hidden_dim` and `label_dim`. `dropout`, `latent` and `adjacency`: see `GraphHash`.

    Raises:
        ValueError: unknown variant.
    """

    def __init__(
        self,
        code_length: int,
        *,
        variant: str = "mmasia",
        image_dim: int = 4096,
        label_dim: int = 512,
        latent_dim: int = 1024,
        hidden_dim: int = 1024,
        dropout: float = 0.5,
        latent: str = "sigmoid",
        adjacency: str = "raw",
    ) -> None:
        super().__init__()
        if variant not in ("mmasia", "tomm"):
            raise ValueError(f"variant must be 'mmasia' or 'tomm', not {variant!r}")
        self.variant = variant
        self.self_attention_lat = attention(label_dim, image_dim)
        self.gcn = GraphHash(label_dim, latent_dim, code_length, dropout=dropout, latent=latent, adjacency=adjacency)
        if variant == "mmasia":
            self.self_attention_image_rec = attention(label_dim, latent_dim)
            self.self_attention_label_rec = attention(image_dim, latent_dim)
            image_rec_dim, label_rec_dim = label_dim, image_dim
        else:
            self.self_attention_image_rec = attention(latent_dim, label_dim)
            self.self_attention_label_rec = attention(latent_dim, image_dim)
            image_rec_dim, label_rec_dim = latent_dim, latent_dim
        self.model_image_rec = MLP(image_rec_dim, code_length, hidden_dim=hidden_dim, feature_dim=label_dim)
        self.model_label_rec = MLP(label_rec_dim, code_length, hidden_dim=hidden_dim, feature_dim=label_dim)

    def forward(
        self, image_features: Tensor, label_features: Tensor, similarity: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F_image [N, 4096], F_label [N, 512], S [N, N] in {0, 1} → U_latent [N, K], Z [N, 1024], U_image_rec [N, K],
        U_label_rec [N, K]. The features are detached: no gradient reaches model_image or model_label through them.
        """
        image_features, label_features = image_features.detach(), label_features.detach()
        fused = attend(self.self_attention_lat, label_features, image_features)  # [N, 512]
        latent_code, latent_features = self.gcn(fused, similarity)  # [N, K], [N, 1024]
        if self.variant == "mmasia":
            image_rec = attend(self.self_attention_image_rec, label_features, latent_features)  # [N, 512]
            label_rec = attend(self.self_attention_label_rec, image_features, latent_features)  # [N, 4096]
        else:
            image_rec = attend(self.self_attention_image_rec, latent_features, label_features)  # [N, 1024]
            label_rec = attend(self.self_attention_label_rec, latent_features, image_features)  # [N, 1024]
        _, image_code_rec = self.model_image_rec(image_rec)
        _, label_code_rec = self.model_label_rec(label_rec)
        return latent_code, latent_features, image_code_rec, label_code_rec


def attention(embed_dim: int, value_dim: int) -> nn.MultiheadAttention:
    """One head; queries and keys have the width `embed_dim`, values `value_dim`."""
    return nn.MultiheadAttention(embed_dim, num_heads=1, kdim=embed_dim, vdim=value_dim)


def attend(layer: nn.MultiheadAttention, query_and_key: Tensor, value: Tensor) -> Tensor:
    """Attention over the batch: query_and_key [N, E], value [N, V] → [N, E]."""
    # torch's fused kernels for a GPU can return NaN as the gradient of large inputs, which nothing bounds here
    # (https://github.com/pytorch/pytorch/issues/125674); a batch is small, so plain products cost little.
    with sdpa_kernel(SDPBackend.MATH) if query_and_key.is_cuda else nullcontext():
        return layer(query_and_key, query_and_key, value, need_weights=False)[0]
