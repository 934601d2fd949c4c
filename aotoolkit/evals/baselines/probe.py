"""A linear probe: what is linearly there, for someone who has labels.

It is fitted on the base's activations and applied unchanged to the organism's, as the oracle is.
Where it is at chance the evaluation says nothing about oracles: it is void, not failed.
"""

import collections
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from aotoolkit.errors import EvalError, IncompatibleActivationsError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.tracing import Activations

Pool = Literal["mean", "last"]

_POOLS: tuple[Pool, ...] = ("last", "mean")
_FOLDS = 3


class LinearProbe:
    """Logistic regression on activations (scikit-learn); a skyline.

    Attributes:
        classes: The labels that it knows.
        layers: The blocks that it reads, together.
        pool: Which vector stands for several positions.
    """

    kind: Kind = "skyline"

    def __init__(
        self,
        fitted: Pipeline,
        *,
        layers: tuple[int, ...],
        base_digest: str,
        pool: Pool,
        name: str = "linear probe",
    ) -> None:
        """A fitted probe; see `fit`."""
        self.fitted = fitted
        self.classes: tuple[str, ...] = tuple(str(label) for label in fitted.classes_)
        self.layers = layers
        self.base_digest = base_digest
        self.pool: Pool = pool
        self.name = name

    @classmethod
    def fit(
        cls,
        activations: Sequence[Activations],
        labels: Sequence[str],
        *,
        pool: Pool | Literal["best"] = "best",
        regularisation: float | Sequence[float] = (1.0, 10.0, 100.0, 1000.0),
        name: str = "linear probe",
    ) -> Self:
        """Fits a probe on activations of the base.

        Args:
            activations: Of the base, all of the same layers.
            labels: What each holds, in the words of the items' choices.
            pool: Which vector stands for several positions: their mean, or the last; "best" for
                the one with the better cross-validated accuracy on these activations. What is held
                all along a span may be weak in any one vector of it, and a skyline that is too low
                voids an evaluation that oracles could pass.
            regularisation: Strength of the L2 penalty, the inverse of scikit-learn's C; of several
                the one with the best cross-validated accuracy, chosen together with the pool.
                Features are standardised first.
            name: As it stands in tables.

        Raises:
            EvalError: Lengths differ, there are fewer than two labels, an adapter was live, layers
                differ, there is no such pool, or a label has too few examples to cross-validate.
        """
        if len(activations) != len(labels) or len(set(labels)) < 2:
            raise EvalError(
                f"{len(activations)} activations and {len(labels)} labels, {len(set(labels))} of "
                "them different; give one label for each, and at least two different ones."
            )
        layers, digest = check_read_from_base(activations)
        if pool not in (*_POOLS, "best"):
            raise EvalError(f'pool is {pool!r}; give one of {", ".join(_POOLS)}, or "best".')
        strengths = [regularisation] if isinstance(regularisation, int | float) else regularisation
        pools = _POOLS if pool == "best" else (pool,)
        if all(len(a) == 1 for a in activations):
            pools = pools[:1]  # of one position they are the same vector
        folds = min(_FOLDS, *collections.Counter(labels).values())
        several = len(strengths) * len(pools) > 1
        if several and folds < 2:
            raise EvalError(
                "A label has one example only, so that neither its strength of regularisation nor "
                "its pool can be cross-validated. Give more examples, or one number as "
                f"regularisation and one of {', '.join(_POOLS)} as pool."
            )
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        by_pool = {one: np.stack([pooled(a, one) for a in activations]) for one in pools}
        best_pool = pools[0]
        if several:
            grid = {"logisticregression__C": [1 / strength for strength in strengths]}
            folding = StratifiedKFold(folds, shuffle=True, random_state=0)
            searches = {}
            for one, features in by_pool.items():
                searches[one] = GridSearchCV(pipeline, grid, cv=folding, refit=False)
                searches[one].fit(features, list(labels))
            best_pool = max(pools, key=lambda one: searches[one].best_score_)
            pipeline.set_params(**searches[best_pool].best_params_)
        else:
            pipeline.set_params(logisticregression__C=1 / strengths[0])
        fitted = pipeline.fit(by_pool[best_pool], list(labels))
        return cls(fitted, layers=layers, base_digest=digest, pool=best_pool, name=name)

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`.

        Raises:
            IncompatibleActivationsError: An item is of other layers or of another base.
            EvalError: An item has choices that the probe was not fitted on.
        """
        if not items:
            return []
        for item in items:
            check_fitted_for(item, layers=self.layers, base_digest=self.base_digest)
            unknown = [choice for choice in item.choices if choice not in self.classes]
            if unknown:
                raise EvalError(
                    f"Item {item.id!r} has the choices {unknown[:5]}, which the probe was not "
                    f"fitted on; it knows {list(self.classes)[:10]}. Fit it on these labels too."
                )
        features = np.stack([pooled(item.activations, self.pool) for item in items])
        answers = []
        for item, row in zip(items, log_probabilities(self.fitted, features), strict=True):
            known = dict(zip(self.classes, (float(x) for x in row), strict=True))
            scores = {choice: known[choice] for choice in item.choices or self.classes}
            best = max(scores, key=lambda choice: scores[choice])
            answers.append(ArmAnswer(item=item.id, arm=self.name, text=best, scores=scores))
        return answers


def log_probabilities(
    classifier: Pipeline, features: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n c"]:
    """Log-probability of each class, in the order of `classes_`.

    scikit-learn takes the logarithm of probabilities in the features' own precision. In float32
    all classes beyond 100 nats become -inf, and which of some candidates is the likeliest is lost.
    """
    scores = classifier.decision_function(features.astype(np.float64))
    if scores.ndim == 1:  # of two classes, that of the second against the first
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return log_softmax(scores, axis=1)


def check_read_from_base(activations: Sequence[Activations]) -> tuple[tuple[int, ...], str]:
    """Layers and base digest of activations that something is fitted on.

    Raises:
        EvalError: An adapter was live, or layers or bases differ.
    """
    with_adapter = sorted({str(a.adapter) for a in activations if a.adapter is not None})
    if with_adapter:
        raise EvalError(
            f"A probe is fitted on the base, and these activations are of {with_adapter}: it "
            "would have seen what the oracle must not. Read them with adapter=None."
        )
    kinds = {(a.layers, a.provenance.base_digest) for a in activations}
    if len(kinds) > 1:
        raise EvalError(
            f"The activations are of different layers or bases: {sorted(k[0] for k in kinds)}. "
            "Fit one probe for each."
        )
    ((layers, digest),) = kinds
    return layers, digest


def check_fitted_for(item: EvalItem, *, layers: tuple[int, ...], base_digest: str) -> None:
    """Refuses an item that was read otherwise than what a probe was fitted on.

    Raises:
        IncompatibleActivationsError: It is of other layers or of another base.
    """
    acts = item.activations
    if (acts.layers, acts.provenance.base_digest) != (layers, base_digest):
        raise IncompatibleActivationsError(
            f"Item {item.id!r} holds layers {list(acts.layers)} of the base "
            f"{acts.provenance.base_digest[:12]}; the probe was fitted on layers "
            f"{list(layers)} of {base_digest[:12]}. Fit one on those."
        )


def pooled(acts: Activations, pool: Pool) -> np.ndarray:
    """[l * d], one vector for several positions, layer by layer."""
    vectors = acts.vectors.float()
    return (vectors[:, -1] if pool == "last" else vectors.mean(1)).flatten().cpu().numpy()
