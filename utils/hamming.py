"""Counting a database by Hamming distance to each query."""

from __future__ import annotations

import torch

# Query-item pairs held at once by the torch path (about 20 bytes each).
_PAIRS_PER_BLOCK = 1 << 21


def count_by_distance_torch(
    query_code: torch.Tensor,
    database_code: torch.Tensor,
    query_labels: torch.Tensor,
    database_labels: torch.Tensor,
    device: torch.device,
    pairs_per_block: int = _PAIRS_PER_BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Histograms over distance by matrix product and bincount, on any device.

    Args:
        query_code: [Q, K], database_code: [D, K], entries −1, 0 or +1.
        query_labels: [Q, C], database_labels: [D, C], multi-hot.
        device: where to count.
        pairs_per_block: bound on the pairs held at once; memory never grows as Q × D.

    Returns:
        items and relevant items at each distance, int64 [Q, 2K+1] on the CPU; bin j is distance j/2.
    """
    bits = query_code.shape[1]
    bins = 2 * bits + 1
    width = min(len(database_code), pairs_per_block)
    height = max(1, pairs_per_block // width)
    histogram = torch.zeros(len(query_code), 2 * bins, dtype=torch.int64)
    for column in range(0, len(database_code), width):
        codes = database_code[column : column + width].to(device, torch.float32).T
        labels = database_labels[column : column + width].to(device, torch.float32).T
        for row in range(0, len(query_code), height):
            rows = slice(row, row + height)
            product = query_code[rows].to(device, torch.float32) @ codes  # small integers: exact in float32
            shared = query_labels[rows].to(device, torch.float32) @ labels
            key = (bits - product).to(torch.int64).mul_(2).add_(shared > 0)
            key.add_(2 * bins * torch.arange(len(key), device=device)[:, None])
            counts = torch.bincount(key.flatten(), minlength=2 * bins * len(key))
            histogram[rows] += counts.view(len(key), 2 * bins).cpu()
    histogram = histogram.view(-1, bins, 2)
    return histogram.sum(2), histogram[:, :, 1].contiguous()
