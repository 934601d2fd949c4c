"""Means with intervals, where the unit that n counts is the organism and never the prompt.

Prompts put to one organism share its weights and its secret: counting each as a draw of its own
makes intervals several times too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over units with a bootstrap interval.

    Attributes:
        mean: mean over units of the mean within each unit.
        low: lower end of the interval.
        high: upper end.
        n: number of units.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap_mean(
    units: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of the mean over units (Efron & Tibshirani 1993, chapter 13).

    Args:
        units: the scores of each unit (organism); each unit counts once, however many it has.
        confidence: coverage of the interval.
        resamples: number of resamples of the units.
        seed: of the resampling.

    Raises:
        ValueError: There is no unit, or one without scores.
    """
    if not units or any(len(unit) == 0 for unit in units):
        raise ValueError(
            f"Each of at least one unit needs a score; got {[len(unit) for unit in units]} scores."
        )
    means = np.array([np.mean(unit) for unit in units])
    rng = np.random.default_rng(seed)
    draws = means[rng.integers(len(means), size=(resamples, len(means)))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(means.mean()), float(low), float(high), len(means))
