"""CIFAR-10: 60,000 images of 32 × 32 pixels in memory; 1,000 queries, 100 per class, drawn by the seed.

The five training batches and the test batch are pooled in this order. The files are Python pickles, which can run code,
so the MD5 sum of every file is compared with the official one before any file is unpickled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split, split_in_memory
from data.options import Options
from utils.errors import UserError
from utils.log import log

NUM_QUERY = 1000


def load_cifar10(root: Path, options: Options) -> Split:
    """CIFAR-10 from ``root/cifar-10-batches-py``; torchvision downloads it where that folder is missing.

    https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.CIFAR10.html

    Raises:
        UserError: the download fails, a file is missing or is not the official one, or --num-query does not fit.
    """
    # Slow to import, and the other datasets do not need it.
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = root / CIFAR10.base_folder
    download = not folder.is_dir()
    try:
        if download:
            log.info("CIFAR-10 is not in %s: downloading 170 MB", root)
            root.mkdir(parents=True, exist_ok=True)
        else:
            for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
                if not check_integrity(folder / name, md5):
                    state = "is not the official file" if (folder / name).is_file() else "is missing"
                    raise UserError(
                        f"{folder / name} {state}; delete the folder {folder} and run again to download CIFAR-10."
                    )
        # Both constructors compare the sums again, and those of a download for the first time, before they unpickle.
        train, test = CIFAR10(root, train=True, download=download), CIFAR10(root, train=False)
    except (OSError, RuntimeError, EOFError) as error:
        if not download:
            raise UserError(f"{folder} cannot be read ({error}); check its permissions.") from error
        raise UserError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({error}); download {CIFAR10.url} on another "
            f"machine and unpack it in {root}, so that {folder / CIFAR10.train_list[0][0]} exists."
        ) from error

    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)  # uint8 [60000, 3, 32, 32]
    targets = np.array(train.targets + test.targets)
    num_query, image_size = options.num_query or NUM_QUERY, options.image_size or 224
    rows = None
    if options.protocol == "test-10000":
        if options.num_query is not None:
            raise UserError("--num-query: with --protocol test-10000 the test images are the queries; leave one out.")
        rows = np.arange(len(train), len(targets)), np.arange(len(train))
    return split_in_memory("cifar-10", pixels, targets, train.classes, num_query, options.seed, image_size, rows=rows)
