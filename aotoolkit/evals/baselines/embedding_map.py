"""A linear map from what is read to a word's unembedding: can the word be read off linearly?

A linear probe knows the words that it was fitted on and no others. This map is fitted on some words
and names others: what it predicts is compared with the unembedding of every candidate. So it says
whether a word that nobody gave labels for is linearly there, which is what an oracle is asked to
find on the words that its training held out.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.baselines.probe import check_fitted_for, check_read_from_base, pooled
from aotoolkit.evals.baselines.vocabulary import answer_from_vocabulary, unembeddings
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.tracing import Activations, TracedModel

_FOLDS = 3


class EmbeddingMap:
    """Ridge regression (scikit-learn) from the mean of what is read to a word's unembedding.

    A candidate's score is the cosine between the prediction and the mean of the unembeddings of its
    tokens, both less the mean over the fitted words: that is where a map that sees nothing points.

    Attributes:
        words: Those that it was fitted on.
        layers: The blocks that it reads, together.
    """

    # A skyline, as it has labels; but not those of the words that it is asked to name.
    kind: Kind = "skyline"

    def __init__(
        self,
        fitted: Pipeline,
        *,
        model: TracedModel,
        words: tuple[str, ...],
        layers: tuple[int, ...],
        base_digest: str,
        name: str = "embedding map",
        top_k: int = 1,
    ) -> None:
        """A fitted map; see `fit`."""
        self.fitted = fitted
        self.model = model
        self.words = words
        self.layers = layers
        self.base_digest = base_digest
        self.name = name
        self.top_k = top_k

    @classmethod
    def fit(
        cls,
        model: TracedModel,
        activations: Sequence[Activations],
        words: Sequence[str],
        *,
        regularisation: float | Sequence[float] = (1.0, 10.0, 100.0, 1000.0),
        name: str = "embedding map",
        top_k: int = 1,
    ) -> Self:
        """Fits a map on activations of the base.

        Args:
            model: The target, whose unembedding is the map's goal.
            activations: Of the base, all of the same layers.
            words: What each holds.
            regularisation: Strength of the L2 penalty (scikit-learn's alpha); of several the one
                with the best R2 on words left out. Features are standardised first.
            name: As it stands in tables.
            top_k: How many tokens make a free answer: each is one guess.

        Raises:
            EvalError: Lengths differ, there are fewer than two words (three, to choose between
                several regularisations), an adapter was live, or layers differ.
        """
        different = tuple(dict.fromkeys(words))
        strengths = [regularisation] if isinstance(regularisation, int | float) else regularisation
        least = _FOLDS if len(strengths) > 1 else 2
        if len(activations) != len(words) or len(different) < least:
            raise EvalError(
                f"{len(activations)} activations and {len(words)} words, {len(different)} of them "
                f"different; give one word for each, and at least {least} different ones."
            )
        layers, digest = check_read_from_base(activations)
        by_word = dict(zip(different, _word_vectors(model, different), strict=True))
        features = np.stack([pooled(acts, "mean") for acts in activations])
        targets = np.stack([by_word[word] for word in words])
        pipeline = make_pipeline(StandardScaler(), Ridge())
        best = {"ridge__alpha": strengths[0]}
        if len(strengths) > 1:
            # By word: what counts is how it does on words that it has not seen.
            search = GridSearchCV(
                pipeline, {"ridge__alpha": list(strengths)}, cv=GroupKFold(_FOLDS), refit=False
            )
            best = search.fit(features, targets, groups=list(words)).best_params_
        fitted = pipeline.set_params(**best).fit(features, targets)
        return cls(
            fitted,
            model=model,
            words=different,
            layers=layers,
            base_digest=digest,
            name=name,
            top_k=top_k,
        )

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; where the answer is free, the `top_k` nearest tokens.

        Raises:
            IncompatibleActivationsError: An item is of other layers or of another base.
        """
        if not items:
            return []
        for item in items:
            check_fitted_for(item, layers=self.layers, base_digest=self.base_digest)
        centre = _word_vectors(self.model, self.words).mean(0)
        features = np.stack([pooled(item.activations, "mean") for item in items])
        predictions = self.fitted.predict(features) - centre
        answers = []
        for item, predicted in zip(items, predictions, strict=True):
            if not item.choices:
                every = unembeddings(self.model).numpy()
                scores = torch.from_numpy(_cosines(every - centre, predicted))
                answers.append(
                    answer_from_vocabulary(
                        scores,
                        item,
                        arm=self.name,
                        tokenizer=self.model.tokenizer,
                        top_k=self.top_k,
                    )
                )
                continue
            cosines = _cosines(_word_vectors(self.model, item.choices) - centre, predicted)
            scored = dict(zip(item.choices, cosines.tolist(), strict=True))
            best = max(scored, key=lambda choice: scored[choice])
            answers.append(ArmAnswer(item=item.id, arm=self.name, text=best, scores=scored))
        return answers


def _word_vectors(model: TracedModel, words: Sequence[str]) -> NDArray[np.float32]:
    """[n d], the mean unembedding of each word's tokens, as it stands after a space."""
    weight = unembeddings(model)
    rows: list[Tensor] = []
    for word in words:
        ids = model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        rows.append(weight[ids].mean(0))
    return torch.stack(rows).numpy()


def _cosines(rows: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    return rows @ vector / np.maximum(lengths, np.finfo(np.float32).tiny)
