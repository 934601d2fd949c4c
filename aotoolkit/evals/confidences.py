"""How well the confidences in answers say which of them are right, and what abstaining would buy.

An oracle's arm writes into each answer how sure it is (`details["confidence"]`): a forced choice
where the item has choices, the probability of the answer otherwise, and what else was asked for.
A forced choice is right where the likeliest choice is; a confidence in a text, where the text is.

What is fitted, a calibration and a threshold, is fitted on other units than those that it is
reported on, in turn for each of five parts of the units.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from aotoolkit.errors import PrecisionNotReachedError
from aotoolkit.evals.items import ASKED_ALIKE
from aotoolkit.evals.metrics import Reliability, reliability
from aotoolkit.evals.records import Record
from aotoolkit.evals.statistics import Estimate, bootstrap_mean
from aotoolkit.evals.tasks.base import names_only
from aotoolkit.oracle.confidence import (
    MIN_GROUPS,
    Confidence,
    ConfidenceKind,
    cross_calibrated,
    group_folds,
    threshold_for_precision,
)

PRECISION = 0.8


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """What is reached where only answers of some confidence and above are given.

    Attributes:
        precision: The share of right answers that was asked for.
        threshold: The least confidence that reaches it on all answers; None where none does.
        reached: Share of right answers among those given, each by a threshold that was chosen on
            other units; None where none is given.
        coverage: Share of the answers that are given.
    """

    precision: float
    threshold: float | None
    reached: Estimate | None
    coverage: float


@dataclass(frozen=True, kw_only=True)
class ConfidenceRow:
    """How good one kind of confidence is on one task.

    Attributes:
        task: The task's name; None for all together.
        arm: The oracle's name in tables.
        kind: The kind of confidence.
        measured: As it was given.
        calibrated: By a temperature (and a shift, where there is but one number) fitted on other
            units; None where it was calibrated before, where the kind cannot be, where there are
            fewer than five units, or where all answers are right or all wrong.
        abstention: By the calibrated values where there are some; None as there.
    """

    task: str | None
    arm: str
    kind: str
    measured: Reliability
    calibrated: Reliability | None
    abstention: Abstention | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Confidences:
    """The confidences of a suite.

    Attributes:
        rows: Task by task, and then all together.
        partly_right: Tasks with answers that are partly right, which are left out.
        num_outside: How many confidences are not from 0 to 1, and are left out.
    """

    rows: tuple[ConfidenceRow, ...] = ()
    partly_right: tuple[str, ...] = ()
    num_outside: int = 0

    @property
    def together(self) -> tuple[ConfidenceRow, ...]:
        """The rows of all tasks together."""
        return tuple(row for row in self.rows if row.task is None)


@dataclass
class _Said:
    """Confidences of one kind, of one oracle."""

    values: list[float] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    groups: list[tuple[str, str]] = field(default_factory=list)
    # What a calibration is fitted on; None where an arm gave a bare number.
    made_of: list[Confidence | None] = field(default_factory=list)


def confidences_of(
    records: Iterable[Record],
    units: Mapping[str, str],
    *,
    precision: float = PRECISION,
    seed: int = 0,
) -> Confidences:
    """What the confidences in oracles' answers are worth.

    Args:
        records: The answers.
        units: Task -> what a unit of it is.
        precision: The share of right answers that abstaining is to reach.
        seed: Of the bootstraps.

    Raises:
        CalibrationError: `precision` is not a share above 0.
    """
    partly: dict[str, None] = {}
    outside = 0
    by_task: dict[tuple[str | None, str, str], _Said] = {}
    together: dict[tuple[str | None, str, str], _Said] = {}
    for record in records:
        if record.kind != "oracle":
            continue
        for kind, value, made_of in _said(record):
            right = _is_right(record, kind)
            if not 0 <= value <= 1:
                outside += 1
                continue
            if right not in (0, 1):
                partly[record.task] = None
                continue
            for rows, task in ((by_task, record.task), (together, None)):
                own = rows.setdefault((task, record.arm, kind), _Said())
                own.values.append(value)
                own.right.append(int(right))
                # An organism that several tasks ask about is still one organism.
                own.groups.append((units.get(record.task, "unit"), record.unit))
                own.made_of.append(made_of)
    return Confidences(
        rows=tuple(_row(key, own, precision, seed) for key, own in {**by_task, **together}.items()),
        partly_right=tuple(partly),
        num_outside=outside,
    )


def _said(record: Record) -> Iterable[tuple[str, float, Confidence | None]]:
    """Kind, value and making of each confidence of a record.

    `details["confidence"]` is a number, the fields of a `Confidence`, or a list of these.
    """
    found = record.details.get("confidence")
    for one in found if isinstance(found, Sequence) and not isinstance(found, str) else [found]:
        kind, value, made_of = "confidence", one, None
        if isinstance(one, Mapping):
            calibrated = bool(one.get("calibrated"))
            name, value = str(one.get("kind", kind)), one.get("value")
            if not calibrated and name in get_args(ConfidenceKind) and {"raw", "n"} <= one.keys():
                made_of = Confidence(
                    kind=name,  # pyright: ignore[reportArgumentType]
                    value=one["value"],
                    raw=one["raw"],
                    n=one["n"],
                    log_probs=tuple(record.scores.values()) if name == "forced_choice" else (),
                )
            kind = name.replace("_", " ") + (", calibrated" if calibrated else "")
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield kind, float(value), made_of


def _is_right(record: Record, kind: str) -> float:
    if not record.choices:
        return record.correct
    if kind.startswith("forced choice"):
        return float(record.answer.choice in record.answers)
    if kind == "confidence" or ASKED_ALIKE in record.secondary:
        # Of an arm of the user's, or of a task whose own score is that of the text.
        return record.correct
    return float(names_only(record.text, record.answers, record.choices))


def _row(
    key: tuple[str | None, str, str], own: _Said, precision: float, seed: int
) -> ConfidenceRow:
    task, arm, kind = key
    unit = " or ".join(sorted({noun for noun, _ in own.groups}))
    both = 0 < sum(own.right) < len(own.right)
    made_of = [one for one in own.made_of if one is not None]
    values, calibrated = own.values, None
    enough = both and len(set(own.groups)) >= MIN_GROUPS
    if enough and len(made_of) == len(own.values):
        values = cross_calibrated(made_of, own.right, own.groups)
        calibrated = reliability(values, own.right, own.groups, unit=unit, seed=seed)
    return ConfidenceRow(
        task=task,
        arm=arm,
        kind=kind,
        measured=reliability(own.values, own.right, own.groups, unit=unit, seed=seed),
        calibrated=calibrated,
        abstention=_abstention(values, own.right, own.groups, precision, unit, seed)
        if enough
        else None,
    )


def _abstention(
    values: Sequence[float],
    right: Sequence[int],
    groups: Sequence[Hashable],
    precision: float,
    unit: str,
    seed: int,
) -> Abstention:
    confidences, correct = np.asarray(values), np.asarray(right)
    fold = group_folds(groups)
    given = np.zeros(len(right), dtype=bool)
    for number in set(fold.tolist()):
        others = fold != number
        found = _threshold(confidences[others], correct[others], precision)
        if found is not None:
            given |= ~others & (confidences >= found)
    by_unit: dict[Hashable, list[float]] = {}
    for index in np.flatnonzero(given).tolist():
        by_unit.setdefault(groups[index], []).append(float(right[index]))
    return Abstention(
        precision=precision,
        threshold=_threshold(confidences, correct, precision),
        reached=bootstrap_mean(
            list(by_unit.values()), unit=unit, seed=seed, bounds=(0.0, 1.0), weighted=True
        )
        if by_unit
        else None,
        coverage=float(given.mean()),
    )


def _threshold(values: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    try:
        return threshold_for_precision(values.tolist(), right.tolist(), precision).value
    except PrecisionNotReachedError:
        return None
