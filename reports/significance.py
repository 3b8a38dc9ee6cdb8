"""Paired differences between two variants over the seeds that both have (docs/tables.md)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

EXACT_UP_TO = 50  # differences; above, scipy's normal approximation is good and the exact distribution is slow


class Paired(NamedTuple):
    """What the differences b − a of n pairs show, as text to print; the text says why if there is no p value."""

    n: int
    difference: str  # mean ± standard deviation (n − 1)
    t_test: str  # p values
    wilcoxon: str
    least: str  # the smallest p value that the Wilcoxon test can give with so many differences


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The mean of second − first, its standard deviation, and two two-sided p values, for n numbers of the same pairs.

    Both tests are scipy's: `ttest_rel`, and `wilcoxon`, exact for up to 50 pairs, without the differences of 0.
    Differences are rounded to 6 decimals, like the numbers in the CSV, so that rounding makes no difference.
    """
    differences = [round(b - a, 6) for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n == 0:
        return Paired(0, "", "no shared seed", "no shared seed", "")
    mean = f"{statistics.fmean(differences):+.4f}".replace("-", "−")
    if n < 2:
        return Paired(n, mean, "n too small", "n too small", "")
    mean += f" ± {statistics.stdev(differences):.4f}"
    if not any(differences):
        return Paired(n, mean, "all differences are 0", "all differences are 0", "")
    constant = len(set(differences)) == 1  # the t-test divides by their deviation
    t_test = "all differences are equal" if constant else _p(stats.ttest_rel(second, first).pvalue)
    nonzero = [difference for difference in differences if difference]
    exact = len(nonzero) <= EXACT_UP_TO
    wilcoxon = _p(stats.wilcoxon(nonzero, method="exact" if exact else "approx").pvalue)
    if len(nonzero) < n:
        wilcoxon += f" ({n - len(nonzero)} differences of 0 left out)"
    return Paired(n, mean, t_test, wilcoxon, _p(2.0 ** (1 - len(nonzero))))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
