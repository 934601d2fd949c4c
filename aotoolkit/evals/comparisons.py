"""Oracles set beside each other, for claims such as "each addition of data is better".

A table has the difference of each arm to a task's best oracle, which is no answer to a claim about
two oracles in particular. A `Comparison` names the pairs; each is compared task by task, paired by
item and unit, over the seeds of both, with Holm's correction over all pairs and tasks of the claim.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from aotoolkit.errors import EvalError
from aotoolkit.evals.statistics import (
    Difference,
    Scores,
    SeedScores,
    holm,
    paired_difference,
)

Verdict = Literal["holds", "is refuted", "is undecided"]
_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim about oracles, as pairs of them.

    Attributes:
        claim: What is claimed, as a clause: "centring reads better".
        pairs: (the one whose score should be higher, the other), by the names of their arms.
        tasks: Those that the claim is about; empty for all.
        leave_out: Those that it is not about.
        metric: Which of the tasks' scores it is about, and only of tasks that have it; empty for
            the main one or, where that is a figure of the set that no item has, the first of the
            others.
    """

    claim: str
    pairs: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    metric: str = ""

    def __post_init__(self) -> None:
        if not self.claim or not self.pairs or any(one == other for one, other in self.pairs):
            raise EvalError(
                f"The comparison {self.claim!r} has the pairs {self.pairs}; give it a claim and "
                "one pair or more of two different arms."
            )


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """One pair of a comparison on one task.

    Attributes:
        claim: The comparison's.
        task: The task.
        metric: Which score.
        higher: The arm whose score should be higher.
        lower: The other.
        difference: The first minus the second, with Holm's correction over the claim.
        void: Whether the task is void, so that the pair says nothing.
    """

    claim: str
    task: str
    metric: str
    higher: str
    lower: str
    difference: Difference
    void: bool

    @property
    def verdict(self) -> Verdict:
        """What the corrected p-value, at .05, and the interval decide together.

        The p-value is about the seeds at hand, a claim is about what the recipe makes of any; so
        the interval, for which seeds are drawn too, must exclude 0 as well.
        """
        found = self.difference
        if self.void or found.p_holm >= _LEVEL or found.low <= 0 <= found.high:
            return "is undecided"
        return "holds" if found.mean > 0 else "is refuted"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """The scores that a task's oracles are compared by.

    Attributes:
        task: The task's name.
        unit: What n counts.
        void: Whether the task is void.
        scores: metric -> arm -> seed -> unit -> scores of its items; the main metric first.
    """

    task: str
    unit: str
    void: bool
    scores: Mapping[str, Mapping[str, SeedScores]]


def compared(
    comparisons: Sequence[Comparison], tasks: Sequence[TaskScores], *, seed: int = 0
) -> tuple[ComparedPair, ...]:
    """Every pair on every task that both answered.

    Args:
        comparisons: The claims.
        tasks: What was scored.
        seed: Of the bootstraps.
    """
    found: list[ComparedPair] = []
    for comparison in comparisons:
        own = [
            pair
            for higher, lower in comparison.pairs
            for task in tasks
            if (pair := _compared(comparison, task, higher, lower, seed)) is not None
        ]
        # What is void is printed and decides nothing, so it is no comparison to correct for.
        p_values = {str(i): p.difference.p_value for i, p in enumerate(own) if not p.void}
        corrected = holm(p_values)
        for index, pair in enumerate(own):
            if not pair.void:
                difference = dataclasses.replace(
                    pair.difference, p_holm=corrected[str(index)], num_comparisons=len(p_values)
                )
                pair = dataclasses.replace(pair, difference=difference)
            found.append(pair)
    return tuple(found)


def _compared(
    comparison: Comparison, task: TaskScores, higher: str, lower: str, seed: int
) -> ComparedPair | None:
    """One pair on one task; None where the claim is not about it, or it was not asked of both."""
    metric = comparison.metric or next(iter(task.scores), "")
    by_arm = task.scores.get(metric, {})
    about = not comparison.tasks or task.task in comparison.tasks
    if not about or task.task in comparison.leave_out or not {higher, lower} <= by_arm.keys():
        return None
    return ComparedPair(
        claim=comparison.claim,
        task=task.task,
        metric=metric,
        higher=higher,
        lower=lower,
        difference=difference_of(by_arm[higher], by_arm[lower], unit=task.unit, seed=seed),
        void=task.void,
    )


def difference_of(ours: SeedScores, theirs: SeedScores, *, unit: str, seed: int) -> Difference:
    """Ours minus theirs, scores from 0 to 1, over the seeds of both; see `paired_difference`.

    What trains nothing (its only seed is None) stands against each seed; an oracle of other seeds
    can only be compared as a mean over its own.
    """
    left: Scores | SeedScores = ours
    right: Scores | SeedScores = theirs
    if ours.keys() != theirs.keys():
        right = _over_seeds(theirs)
        if theirs.keys() != {None} or len(ours) == 1:
            left = _over_seeds(ours)
    return paired_difference(left, right, unit=unit, seed=seed, bounds=(-1.0, 1.0))


def _over_seeds(by_seed: SeedScores) -> Scores:
    """The mean over seeds of each item's score."""
    seeds = list(by_seed.values())
    return {
        unit: [sum(values) / len(values) for values in zip(*(s[unit] for s in seeds), strict=True)]
        for unit in seeds[0]
    }


def sentences(pairs: Sequence[ComparedPair]) -> list[str]:
    """What each claim comes to, pair by pair."""
    said = []
    for claim in dict.fromkeys(pair.claim for pair in pairs):
        own = [pair for pair in pairs if pair.claim == claim]
        text = f"Claim: {claim}."
        for higher, lower in dict.fromkeys((pair.higher, pair.lower) for pair in own):
            text += f" {higher} against {lower}: {_decided(own, higher, lower)}"
        said.append(text)
    return said


def _decided(pairs: Sequence[ComparedPair], higher: str, lower: str) -> str:
    own = [pair for pair in pairs if (pair.higher, pair.lower) == (higher, lower)]
    void = [pair.task for pair in own if pair.void]
    counted = [pair for pair in own if not pair.void]
    if not counted:
        return f"void on all tasks ({', '.join(void)})."
    above = sum(pair.difference.mean > 0 for pair in counted)
    parts = []
    for verdict in get_args(Verdict):
        of = [pair for pair in counted if pair.verdict == verdict]
        shown = of if verdict != "is undecided" else []
        parts.append(
            f"{verdict} on {len(of)}"
            + (f" ({', '.join(map(_with_figure, shown))})" if shown else "")
        )
    return (
        f"higher on {above} of {len(counted)} tasks; at p < {_LEVEL:g} after Holm's correction for "
        f"{counted[0].difference.num_comparisons} comparisons, and with an interval that excludes "
        f"0, it {', '.join(parts)}."
        + (f" Void and not counted: {', '.join(void)}." if void else "")
    )


def _with_figure(pair: ComparedPair) -> str:
    return f"{pair.task} {pair.difference.mean:+.2f}"
