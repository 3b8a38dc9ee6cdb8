"""Work shared out to threads, results in order, with a progress bar."""

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
    """``map(work, items)`` by threads, results in order, with a progress bar where there is a terminal.

    `count` is the number of items, `images` how many images each stands for. Only a few results wait at any time, so
    that the memory does not grow with the collection.
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
