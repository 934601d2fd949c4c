"""Means with intervals, where the unit that n counts is the organism and never the prompt.

Prompts put to one organism share its weights and its secret: counting each as a draw of its own
makes intervals several times too narrow. Oracles of several training seeds read the same organisms,
so an organism is drawn for all seeds at once: seeds make an oracle's figure surer, not the number
of organisms larger.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aotoolkit.errors import ScoreError

# Up to this many organisms all 2^n patterns of signs are tried; above, a random sample of them.
_EXACT_SIGNS = 14
# Means of the same scores in another order differ by rounding.
_ALIKE = 1e-12

# seed -> organism -> scores of its prompts. Hashable keys; as types they are invariant, so that a
# dict[str, ...] would not be a Mapping[Hashable, ...].
SeedScores = Mapping[Any, Mapping[Any, Sequence[float]]]
# organism -> scores of its prompts
Scores = Mapping[Any, Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """A mean over units with a bootstrap interval.

    Attributes:
        mean: mean over units of the mean within each unit.
        low: lower end of the interval.
        high: upper end.
        n: number of units.
        unit: what n counts.
        num_seeds: number of oracles (training seeds) that the mean is over.
    """

    mean: float
    low: float
    high: float
    n: int
    unit: str = "organism"
    num_seeds: int = 1

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def text(self) -> str:
        """The interval with n and its unit, as `0.42 [0.31, 0.53] (n = 20, unit: organism)`."""
        seeds = f", {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return f"{self} (n = {self.n}, unit: {self.unit}{seeds})"


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference, paired by unit, with its interval and a test that it is 0.

    Attributes:
        p_value: two-sided, of the sign-flip permutation test over units: how often differences
            whose signs are drawn at random are as far from 0.
        p_holm: the same after Holm's correction for all comparisons made together; equal to
            `p_value` where there was one.
        num_comparisons: how many were made together.
    """

    p_value: float = 1.0
    p_holm: float = 1.0
    num_comparisons: int = 1

    @property
    def text(self) -> str:
        """The interval, n and its unit, and the corrected p-value with what it is corrected for."""
        correction = (
            f" after Holm's correction for {self.num_comparisons} comparisons"
            if self.num_comparisons > 1
            else ""
        )
        return f"{super().text}, p = {self.p_holm:.2g}{correction}"


def bootstrap_mean(
    units: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    unit: str = "organism",
    bounds: tuple[float, float] | None = None,
    weighted: bool = False,
) -> Estimate:
    """Percentile bootstrap of the mean over units (Efron & Tibshirani 1993, chapter 13).

    Args:
        units: the scores of each unit (organism); each unit counts once, however many it has.
        confidence: coverage of the interval.
        resamples: number of resamples of the units.
        seed: of the resampling.
        unit: what a unit is.
        bounds: the least and the largest score there can be. Where all units are alike (an oracle
            that is right in 12 of 12, 12 differences of 0, one unit alone), resampling sees no
            scatter and gives an interval of no width; with `bounds` it then goes as far as the
            units that n may have missed, by the exact (Clopper-Pearson) limit, could move the mean.
        weighted: each score counts once instead of each unit; units are drawn all the same.

    Raises:
        ScoreError: There is no unit, one without scores, a score that is not finite or
            outside `bounds`.
    """
    if not units or any(len(unit) == 0 for unit in units):
        raise ScoreError(
            f"Each of at least one unit needs a score; got {[len(unit) for unit in units]} scores."
        )
    scores = [_finite(values) for values in units]
    sizes = np.array([len(values) if weighted else 1 for values in scores], dtype=np.float64)
    totals = np.array([values.mean() for values in scores]) * sizes
    rng = np.random.default_rng(seed)
    index = rng.integers(len(units), size=(resamples, len(units)))
    draws = totals[index].sum(1) / sizes[index].sum(1)
    mean = float(totals.sum() / sizes.sum())
    return _interval(mean, draws, scores, confidence, bounds, unit=unit)


def hierarchical_bootstrap(
    scores: SeedScores,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    unit: str = "organism",
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Percentile bootstrap that draws seeds, then organisms, then prompts, each with replacement.

    Organisms that all seeds read are drawn once for all of them (the pigeonhole bootstrap, Owen
    2007), and so are an organism's prompts; drawing them anew for each seed would count one
    organism as several. Organisms that belong to one seed each are drawn within it. Drawing
    prompts too makes the interval slightly wide, never narrow (Davison & Hinkley 1997, 3.8). Of
    three seeds no bootstrap can say much about other seeds; `num_seeds` says how many there were.

    Args:
        scores: seed -> organism -> scores of its prompts, in the same order for all seeds.
        confidence: coverage of the interval.
        resamples: number of resamples.
        seed: of the resampling.
        unit: what an organism is here (person, predicate).
        bounds: as for `bootstrap_mean`.

    Returns:
        Mean over seeds of the mean over organisms of the mean over prompts; n counts organisms.

    Raises:
        ScoreError: There is no seed, one without organisms, or an organism without scores;
            seeds share some organisms and not others, or one has other numbers of prompts.
    """
    arrays = {key: _organisms(organisms) for key, organisms in scores.items()}
    if not arrays or not all(arrays.values()):
        raise ScoreError(
            "Each of at least one seed needs an organism; got "
            f"{ {key: len(organisms) for key, organisms in arrays.items()} } organisms."
        )
    names = list(dict.fromkeys(name for organisms in arrays.values() for name in organisms))
    crossed = _is_crossed(arrays)
    blocks = (
        # An organism's prompts, one row a seed.
        [[np.stack([organisms[name] for organisms in arrays.values()]) for name in names]]
        if crossed
        else [[values[None] for values in organisms.values()] for organisms in arrays.values()]
    )
    mean = float(
        np.mean([np.mean([v.mean() for v in organisms.values()]) for organisms in arrays.values()])
    )
    rng = np.random.default_rng(seed)
    num_seeds = len(arrays)
    picked = rng.integers(num_seeds, size=(resamples, num_seeds))
    # [resamples, seeds]: how often each seed is drawn.
    times = np.stack([(picked == number).sum(1) for number in range(num_seeds)], axis=1)
    columns = []
    for organisms in blocks:
        drawn = rng.integers(len(organisms), size=(resamples, len(organisms)))
        total = np.zeros((resamples, organisms[0].shape[0]))
        for number, values in enumerate(organisms):
            # Each time that an organism is drawn, its prompts are drawn anew.
            rows, _ = np.nonzero(drawn == number)
            prompts = rng.integers(values.shape[1], size=(len(rows), values.shape[1]))
            np.add.at(total, rows, values[:, prompts].mean(-1).T)
        columns.append(total / len(organisms))
    by_seed = np.concatenate(columns, axis=1)
    draws = (by_seed * times).sum(1) / num_seeds
    every = [values for organisms in arrays.values() for values in organisms.values()]
    estimate = _interval(mean, draws, every, confidence, bounds, unit=unit, n=len(names))
    return replace(estimate, num_seeds=num_seeds)


def paired_difference(
    ours: Scores | SeedScores,
    theirs: Scores | SeedScores,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    unit: str = "organism",
    bounds: tuple[float, float] | None = None,
) -> Difference:
    """Ours minus theirs, prompt by prompt, with an interval and a test over organisms.

    The interval is that of `hierarchical_bootstrap` of the differences. The test flips the sign of
    each organism's mean difference (over prompts and seeds), all patterns up to 14 organisms and
    `resamples` random ones above; so its p-value is about these seeds, and with n organisms it
    cannot be below 2 / 2^n.

    Args:
        ours: organism -> scores, or seed -> organism -> scores.
        theirs: the same organisms and prompts in the same order; where only `ours` has seeds (a
            baseline that trains nothing), theirs stands against each of them.
        confidence: coverage of the interval.
        resamples: of the bootstrap, and of the signs.
        seed: of the resampling.
        unit: what an organism is here.
        bounds: of a difference, as for `bootstrap_mean`: (-1, 1) for scores from 0 to 1.

    Raises:
        ScoreError: The two do not hold the same organisms and prompts; or as
            `hierarchical_bootstrap`.
    """
    left, right = _with_seeds(ours), _with_seeds(theirs)
    if len(right) == 1 and len(left) > 1 and not _has_seeds(theirs):
        right = dict.fromkeys(left, next(iter(right.values())))
    if left.keys() != right.keys():
        raise ScoreError(
            f"A paired difference needs the same seeds on both sides; got {list(left)} and "
            f"{list(right)}."
        )
    differences: dict[Hashable, dict[Hashable, Sequence[float]]] = {}
    for key, organisms in left.items():
        mine, other = _organisms(organisms), _organisms(right[key])
        if mine.keys() != other.keys():
            missing = sorted(map(str, mine.keys() ^ other.keys()))
            raise ScoreError(
                f"A paired difference needs the same units on both sides; {missing[0]!r} is only "
                "on one."
            )
        for name in mine:
            if len(mine[name]) != len(other[name]):
                raise ScoreError(
                    f"{name!r} has {len(mine[name])} scores on one side and {len(other[name])} on "
                    "the other; give one for each prompt, in the same order."
                )
        differences[key] = {name: (mine[name] - other[name]).tolist() for name in mine}
    interval = hierarchical_bootstrap(
        differences,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        unit=unit,
        bounds=bounds,
    )
    by_unit: dict[Hashable, list[float]] = {}
    for organisms in differences.values():
        for name, values in organisms.items():
            by_unit.setdefault(name, []).append(float(np.mean(values)))
    means = np.array([float(np.mean(values)) for values in by_unit.values()], dtype=np.float64)
    p_value = _sign_flip(means, resamples, seed)
    return Difference(
        interval.mean,
        interval.low,
        interval.high,
        interval.n,
        unit,
        interval.num_seeds,
        p_value=p_value,
        p_holm=p_value,
    )


def compare(
    ours: Scores | SeedScores,
    others: Mapping[str, Scores | SeedScores],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    unit: str = "organism",
    bounds: tuple[float, float] | None = None,
) -> dict[str, Difference]:
    """Ours minus each of the others, paired, with Holm's correction over all of them.

    The intervals are each for itself and not corrected; `Difference.num_comparisons` says how many
    p-values `p_holm` is corrected for.

    Raises:
        ScoreError: As `paired_difference`.
    """
    found = {
        name: paired_difference(
            ours,
            theirs,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            unit=unit,
            bounds=bounds,
        )
        for name, theirs in others.items()
    }
    corrected = holm({name: difference.p_value for name, difference in found.items()})
    return {
        name: replace(difference, p_holm=corrected[name], num_comparisons=len(found))
        for name, difference in found.items()
    }


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for all being looked at together (Holm 1979).

    Rejecting those below a level keeps the chance of any false rejection below it, whatever the
    dependence between the tests.

    Raises:
        ScoreError: A p-value is not from 0 to 1.
    """
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise ScoreError(f"The p-value of {name!r} is {p_value}; it must be from 0 to 1.")
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ScoreError(f"Scores hold NaN or infinity: {array.tolist()[:10]}.")
    return array


def _organisms(organisms: Scores) -> dict[Hashable, NDArray[np.float64]]:
    arrays = {name: _finite(values) for name, values in organisms.items()}
    if empty := [name for name, values in arrays.items() if len(values) == 0]:
        raise ScoreError(f"{empty[0]!r} has no score; leave it out, or give it one.")
    return arrays


def _has_seeds(scores: Scores | SeedScores) -> bool:
    return any(isinstance(value, Mapping) for value in scores.values())


def _with_seeds(scores: Scores | SeedScores) -> SeedScores:
    return scores if _has_seeds(scores) else {0: scores}  # pyright: ignore[reportReturnType]


def _is_crossed(arrays: Mapping[Hashable, Mapping[Hashable, NDArray[np.float64]]]) -> bool:
    """Whether all seeds read the same organisms and prompts, and not each its own."""
    organisms = list(arrays.values())
    if all(one.keys() == organisms[0].keys() for one in organisms):
        for name, values in organisms[0].items():
            if {len(one[name]) for one in organisms} != {len(values)}:
                raise ScoreError(
                    f"{name!r} has other numbers of scores under other seeds: "
                    f"{ {key: len(one[name]) for key, one in arrays.items()} }. Give one for each "
                    "prompt and seed."
                )
        return True
    for (one, mine), (two, theirs) in itertools.combinations(arrays.items(), 2):
        if shared := mine.keys() & theirs.keys():
            raise ScoreError(
                f"Seeds {one!r} and {two!r} share {len(shared)} units and not the others. Give all "
                "seeds the same units (rerun what is missing), or each its own."
            )
    return False


def _interval(
    mean: float,
    draws: NDArray[np.float64],
    scores: Sequence[NDArray[np.float64]],
    confidence: float,
    bounds: tuple[float, float] | None,
    *,
    unit: str,
    n: int | None = None,
) -> Estimate:
    if not 0 < confidence < 1:
        raise ScoreError(f"confidence is {confidence}; it must be between 0 and 1.")
    n = len(scores) if n is None else n
    tail = (1 - confidence) / 2
    low, high = (float(end) for end in np.quantile(draws, [tail, 1 - tail]))
    if bounds is not None:
        least, most = bounds
        smallest = min(float(values.min()) for values in scores)
        largest = max(float(values.max()) for values in scores)
        if smallest < least or largest > most:
            raise ScoreError(f"A score is outside {bounds}: {smallest} to {largest}.")
        if np.ptp(draws) < _ALIKE:
            # Where this share of units scores otherwise, n of n score alike in alpha/2 of cases.
            missed = 1 - tail ** (1 / n)
            low, high = mean - missed * (mean - least), mean + missed * (most - mean)
    return Estimate(mean, low, high, n, unit)


def _sign_flip(differences: NDArray[np.float64], resamples: int, seed: int) -> float:
    observed = abs(differences.sum()) - 1e-9  # a sum in another order is not another sum
    n = len(differences)
    if n <= _EXACT_SIGNS:
        patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        return float(np.mean(np.abs(patterns @ differences) >= observed))
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(resamples, n))
    extreme = int((np.abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (resamples + 1)
