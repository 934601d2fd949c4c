"""A probe of what no base can be told: fitted on other organisms than those it reads.

What a difference of activations holds of a domain cannot be prompted into the base, so no probe of
the base has labels for it. Other organisms of the same domains have. That a probe of those succeeds
says that organisms of one domain changed alike and that it is linearly there; that it fails does
not say that one organism's own difference holds nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.baselines.probe import Pool, log_probabilities, pooled
from aotoolkit.evals.items import ArmAnswer, EvalItem

# The log-probability of a choice that no other unit has; none that is known has less.
_LEAST = float(np.log(np.finfo(np.float64).tiny))
_MOST_PARTS = 5


class CrossFittedProbe:
    """Logistic regression (scikit-learn), fitted on some units and read on the rest, in turn.

    The units are dealt into parts, each with a unit of every answer. Leaving out one unit alone
    would make its answer the rarest among the others, and so the last to be named: below chance
    where nothing is there to be found.
    """

    kind: Kind = "skyline"
    whole_task = True

    def __init__(
        self,
        *,
        pool: Pool = "mean",
        regularisation: float = 10.0,
        name: str = "linear probe of other units",
    ) -> None:
        """A cross-fitted probe.

        Args:
            pool: Which vector stands for several positions.
            regularisation: Strength of the L2 penalty, the inverse of scikit-learn's C. Features
                are standardised first.
            name: As it stands in tables.

        Raises:
            EvalError: The regularisation is not above 0.
        """
        if regularisation <= 0:
            raise EvalError(f"regularisation is {regularisation}; give a number above 0.")
        self.pool: Pool = pool
        self.regularisation = regularisation
        self.name = name

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; give it all items of a task at once.

        Raises:
            ArmNotApplicableError: An item has no choices, no other unit has a unit's answer, or
                all have the same.
        """
        if not items:
            return []
        for item in items:
            if not item.choices:
                raise ArmNotApplicableError(
                    f"Item {item.id!r} has no choices, which a probe would need. Leave "
                    f"{self.name!r} out for this task."
                )
        labels = np.array([item.answers[0] for item in items])
        units = np.array([item.unit for item in items])
        features = np.stack([pooled(item.activations, self.pool) for item in items])
        answers: dict[int, ArmAnswer] = {}
        part = self._parts(units.tolist(), labels.tolist())
        for number in range(part.max() + 1):
            own = part == number
            probe = make_pipeline(
                StandardScaler(),
                LogisticRegression(
                    C=1 / self.regularisation, class_weight="balanced", max_iter=2000
                ),
            ).fit(features[~own], labels[~own])
            known = log_probabilities(probe, features[own]).clip(_LEAST)
            for index, row in zip(np.flatnonzero(own).tolist(), known, strict=True):
                by_class = dict(zip(probe.classes_.tolist(), row.tolist(), strict=True))
                scores = {choice: by_class.get(choice, _LEAST) for choice in items[index].choices}
                best = max(scores, key=lambda choice: scores[choice])
                answers[index] = ArmAnswer(
                    item=items[index].id, arm=self.name, text=best, scores=scores
                )
        return [answers[index] for index in range(len(items))]

    def _parts(self, units: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
        """The part of each item: all of a unit are in one, and each part has every answer."""
        answers_of: dict[str, str] = dict(zip(units, labels, strict=True))
        by_answer: dict[str, list[str]] = {}
        for unit, answer in answers_of.items():
            by_answer.setdefault(answer, []).append(unit)
        rarest = min(by_answer, key=lambda answer: len(by_answer[answer]))
        if len(by_answer[rarest]) < 2:
            raise ArmNotApplicableError(
                f"{by_answer[rarest][0]!r} is the only unit whose answer is {rarest!r}, so that no "
                f"other could teach a probe it. Give two or more of each, or leave {self.name!r} "
                "out."
            )
        if len(by_answer) < 2:
            raise ArmNotApplicableError(
                f"All units have one answer, {rarest!r}. Give units of two or more answers, or "
                f"leave {self.name!r} out."
            )
        count = min(_MOST_PARTS, len(by_answer[rarest]))
        part = {
            unit: number % count for own in by_answer.values() for number, unit in enumerate(own)
        }
        return np.array([part[unit] for unit in units])
