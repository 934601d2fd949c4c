"""A probe of what no base can be told: fitted on the other organisms, read on each in turn.

What a difference of activations holds of a domain cannot be prompted into the base, so no probe of
the base has labels for it. Other organisms of the same domains have. That a probe of those succeeds
says that organisms of one domain changed alike and that it is linearly there; that it fails does
not say that one organism's own difference holds nothing.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.baselines.probe import Pool, pooled
from aotoolkit.evals.items import ArmAnswer, EvalItem

# The probability of a choice that no other unit has; log-probabilities stay finite.
_LEAST = float(np.finfo(np.float64).tiny)


class CrossFittedProbe:
    """Logistic regression (scikit-learn), fitted anew for each unit on all units but it.

    Answers count alike however often they come: the one that a left-out unit has is rarer among
    the others, for that reason alone, and would be the last to be named.
    """

    kind: Kind = "skyline"
    whole_task = True

    def __init__(
        self,
        *,
        pool: Pool = "mean",
        regularisation: float = 10.0,
        name: str = "linear probe of the other units",
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
            ArmNotApplicableError: An item has no choices, or no other unit has a unit's answer.
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
        for unit in dict.fromkeys(units.tolist()):
            own = units == unit
            alone = sorted(set(labels[own].tolist()) - set(labels[~own].tolist()))
            if alone:
                raise ArmNotApplicableError(
                    f"{unit!r} is the only unit whose answer is {alone[0]!r}, so that no other "
                    f"could teach a probe it. Give two or more of each, or leave {self.name!r} out."
                )
            if len(set(labels[~own].tolist())) < 2:
                raise ArmNotApplicableError(
                    f"All units but {unit!r} have one answer, {labels[~own][0]!r}. Give units of "
                    f"two or more answers, or leave {self.name!r} out."
                )
            probe = make_pipeline(
                StandardScaler(),
                LogisticRegression(
                    C=1 / self.regularisation, class_weight="balanced", max_iter=2000
                ),
            ).fit(features[~own], labels[~own])
            known = np.log(probe.predict_proba(features[own]).clip(_LEAST))
            for index, row in zip(np.flatnonzero(own).tolist(), known, strict=True):
                by_class = dict(zip(probe.classes_.tolist(), row.tolist(), strict=True))
                scores = {
                    choice: by_class.get(choice, float(np.log(_LEAST)))
                    for choice in items[index].choices
                }
                best = max(scores, key=lambda choice: scores[choice])
                answers[index] = ArmAnswer(
                    item=items[index].id, arm=self.name, text=best, scores=scores
                )
        return [answers[index] for index in range(len(items))]
