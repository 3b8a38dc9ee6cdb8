"""Codes of images: the sign of U_image of model_image in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data import ImageDataset
from data.data_loader import eval_batches
from modules.discrete import signs
from training.run_folder import RunFolder
from utils import distributed
from utils.log import progress_bar

GPU_BATCHES = 4  # training batches that a GPU encodes at once


@torch.inference_mode()
def encode(
    model_image: nn.Module,
    dataset: ImageDataset,
    *,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    bar: str = "Encoding",
) -> Tensor:
    """Codes of the n images of a dataset, in order: [n, K], float32, ±1, on the CPU. The model keeps its mode.

    A code is NaN where the output of the network is not finite. `bar` is the text of the progress bar.
    """
    return signs(encode_continuous(model_image, dataset, batch_size, device, num_workers, bar)).float().cpu()


@torch.inference_mode()
def encode_continuous(
    model_image: nn.Module,
    dataset: ImageDataset,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    bar: str = "Encoding",
) -> Tensor:
    """U_image of every image of a dataset [n, K], in eval mode, on the device; arguments as for `encode`."""
    was_training = model_image.training
    model_image.eval()
    part, parts = distributed.share()
    own = torch.arange(part, len(dataset), parts)
    if device.type == "cuda":  # without gradients there is memory for more images, and small kernels leave a GPU idle
        batch_size *= GPU_BATCHES
    batches = eval_batches(dataset, batch_size=batch_size, device=device, num_workers=num_workers, indices=own)
    parts_of_codes = []
    with progress_bar(bar, len(own), " images") as progress:
        for images, _, _ in batches:
            parts_of_codes.append(model_image(images)[1])
            progress.update(len(images))
    codes = torch.cat(parts_of_codes)
    model_image.train(was_training)
    if parts == 1:
        return codes
    together = codes.new_zeros(len(dataset), codes.shape[1])
    together[own.to(device)] = codes
    return distributed.sum_over_processes(together)


def network_codes(model_image: nn.Module, model_label: nn.Module, dataset: ImageDataset, run: RunFolder) -> Tensor:
    """U_image and U_label of every row by the networks in eval mode, and 0 for U_latent: [3, n, K].

    U_latent depends on the graph of a mini-batch: a row outside a mini-batch has none.
    """
    image_code = encode_continuous(
        model_image, dataset, run.settings.batch_size, run.device, num_workers=run.settings.num_workers
    )
    with torch.inference_mode():
        # The label network has no layer that depends on the mode.
        _, label_code = model_label(dataset.labels.to(run.device, image_code.dtype))
    return torch.stack((image_code, label_code, torch.zeros_like(image_code)))
