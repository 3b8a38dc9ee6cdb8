"""Codes of images: sign(U_image) of model_image in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.data_loader import eval_batches


@torch.inference_mode()
def encode(model_image: nn.Module, dataset, *, batch_size: int, device: torch.device, num_workers: int = 0) -> Tensor:
    """Encode every image of a dataset, in order.

    Args:
        model_image: images [N, 3, S, S] → (features, code [N, K]).
        dataset: a `data` ImageDataset.
        batch_size: images at once.
        device: where model_image lies.
        num_workers: processes that read images ahead.

    Returns:
        Codes [n, K] float32 in ±1 on the CPU. The model's training mode is put back.
    """
    was_training = model_image.training
    model_image.eval()
    batches = eval_batches(dataset, batch_size=batch_size, device=device, num_workers=num_workers)
    codes = [torch.sign(model_image(images)[1]).float().cpu() for images, _, _ in batches]
    model_image.train(was_training)
    return torch.cat(codes)
