"""Work shared among threads, with the results in order and a progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from utils.log import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    count: int,
    bar: str,
    images: int = 1,
    ahead: int | None = None,
) -> Iterator[Result]:
    """``map(work, items)`` by threads, with the results in order.

    Args:
        ahead: items that are worked on or wait in memory at most; None: 8 per thread.
        count: number of items, for the progress bar with the text `bar` (`utils.log.progress_bar`).
        images: number of images that each item stands for.
    """
    waiting: deque[Future[Result]] = deque()
    progress = progress_bar(bar, count, " images", unit_scale=images)
    with ThreadPoolExecutor(threads) as executor, progress:
        try:
            for item in items:
                waiting.append(executor.submit(work, item))
                if len(waiting) >= (ahead or 8 * threads):
                    yield waiting.popleft().result()
                    progress.update()
            while waiting:
                yield waiting.popleft().result()
                progress.update()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
