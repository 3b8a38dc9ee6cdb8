"""Work shared among threads, with the results in order and a progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, count: int, bar: str, images: int = 1
) -> Iterator[Result]:
    """``map(work, items)`` by threads, with the results in order, at most 8 of which per thread wait in memory.

    Args:
        count: number of items, for the progress bar `bar`, which is shown on a terminal only.
        images: number of images that each item stands for.
    """
    waiting: deque[Future[Result]] = deque()
    progress = tqdm(total=count, desc=bar, disable=None, unit=" images", unit_scale=images, leave=False)
    with ThreadPoolExecutor(threads) as executor, progress:
        try:
            for item in items:
                waiting.append(executor.submit(work, item))
                if len(waiting) >= 8 * threads:
                    yield waiting.popleft().result()
                    progress.update()
            while waiting:
                yield waiting.popleft().result()
                progress.update()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
