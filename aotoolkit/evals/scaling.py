"""How an oracle's figures grow with its data and its base: what was measured, with intervals.

The runs are those of `aotoolkit.nano.scaling`; `aotoolkit.plots.scaling_curves` draws them.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from aotoolkit.atomic import replacing
from aotoolkit.errors import CorruptedFileError, ScoreError
from aotoolkit.evals.statistics import Estimate, bootstrap_mean, hierarchical_bootstrap

SCALING_FILE = "scaling.json"
_RESAMPLES = 2_000

# "held_out": what training examples are like; "word": which word is hidden, of words that are a
# secret in no training example.
Scored = Literal["held_out", "word"]


@dataclass(frozen=True, kw_only=True)
class ScalingScore:
    """One example, scored with its activations and without.

    Attributes:
        scored: in which figure it counts.
        unit: what counts as one draw: the document, or the word.
        loss: nats a token of the answer.
        exact: whether the greedy answer is right.
        loss_without: with nothing injected.
        exact_without: with nothing injected.
    """

    scored: Scored
    unit: str
    loss: float
    exact: bool
    loss_without: float
    exact_without: bool


@dataclass(frozen=True, kw_only=True)
class ScalingRun:
    """One oracle that was trained, and how it did.

    Attributes:
        base: name of its base.
        parameters: of the base.
        examples: that it was trained on, each once.
        seed: of its weights and of the order of its examples.
        scores: of the same examples for every run.
    """

    base: str
    parameters: int
    examples: int
    seed: int
    scores: tuple[ScalingScore, ...]

    def save(self, path: Path) -> None:
        """Writes it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            CorruptedFileError: it is something else.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            scores = tuple(ScalingScore(**score) for score in values.pop("scores"))
            return cls(**values, scores=scores)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptedFileError(
                f"{path} is damaged ({error!r}). Delete it and run again."
            ) from error


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """The figures of one base and one number of examples, over all seeds.

    Attributes:
        base: name of the base.
        parameters: of the base.
        examples: of training.
        loss: held-out loss, in nats a token; n counts documents.
        loss_without: with nothing injected.
        word: share of hidden words named, of those never a secret in training; n counts words.
        word_without: with nothing injected: what can be guessed.
    """

    base: str
    parameters: int
    examples: int
    loss: Estimate
    loss_without: Estimate
    word: Estimate
    word_without: Estimate


@dataclass(frozen=True, kw_only=True)
class ScalingResult:
    """All points of a scaling experiment.

    Attributes:
        points: by base and number of examples, each increasing.
        settings: what the runs have in common, as JSON.
        bases: base -> what it knows, of what was held out from its own training.
    """

    points: tuple[ScalingPoint, ...]
    settings: Mapping[str, Any]
    bases: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(
        cls,
        points: Iterable[ScalingPoint],
        *,
        settings: Mapping[str, Any],
        bases: Mapping[str, Mapping[str, float]],
    ) -> Self:
        """Puts points in order."""
        return cls(
            points=tuple(sorted(points, key=lambda p: (p.parameters, p.base, p.examples))),
            settings=dict(settings),
            bases={name: dict(figures) for name, figures in bases.items()},
        )

    @property
    def base_names(self) -> tuple[str, ...]:
        """The bases, the smallest first."""
        return tuple(dict.fromkeys(point.base for point in self.points))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of training examples, increasing."""
        return tuple(sorted({point.examples for point in self.points}))

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "settings": dict(self.settings),
            "bases": {name: dict(figures) for name, figures in self.bases.items()},
            "points": [dataclasses.asdict(point) for point in self.points],
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `scaling.json`, whole or not at all; -> the file."""
        path = Path(folder) / SCALING_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            text = json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            CorruptedFileError: there is no such file, or it is something else.
        """
        path = Path(folder) / SCALING_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            points = tuple(_read_point(point) for point in values["points"])
            return cls(points=points, settings=values["settings"], bases=values["bases"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptedFileError(
                f"{path} holds no scaling result ({error!r}). Run `aotoolkit scaling` there."
            ) from error


def scaling_point(runs: Sequence[ScalingRun]) -> ScalingPoint:
    """The figures of runs that differ in their seed alone.

    Raises:
        ScoreError: there is no run, they differ in more, or were not scored on the same examples.
    """
    if len({(run.base, run.parameters, run.examples) for run in runs}) != 1:
        raise ScoreError(
            "A point is of at least one run, and of one base and number of examples; got "
            f"{[(run.base, run.examples) for run in runs]}."
        )
    first = runs[0]

    def estimate(scored: Scored, name: str, unit: str) -> Estimate:
        by_seed = {
            run.seed: _by_unit(
                (score.unit, float(getattr(score, name)))
                for score in run.scores
                if score.scored == scored
            )
            for run in runs
        }
        if scored == "held_out" and len(runs) == 1:
            # A hundred times faster with a thousand units, and the same where nothing but units
            # is drawn.
            units = list(by_seed[first.seed].values())
            return bootstrap_mean(units, unit=unit, resamples=_RESAMPLES)
        bounds = (0.0, 1.0) if scored == "word" else None
        return hierarchical_bootstrap(by_seed, unit=unit, bounds=bounds, resamples=_RESAMPLES)

    return ScalingPoint(
        base=first.base,
        parameters=first.parameters,
        examples=first.examples,
        loss=estimate("held_out", "loss", "document"),
        loss_without=estimate("held_out", "loss_without", "document"),
        word=estimate("word", "exact", "word"),
        word_without=estimate("word", "exact_without", "word"),
    )


def _read_point(values: Mapping[str, Any]) -> ScalingPoint:
    fields: dict[str, Any] = {
        name: Estimate(**value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return ScalingPoint(**fields)


def _by_unit(scores: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    grouped: dict[str, list[float]] = {}
    for unit, value in scores:
        grouped.setdefault(unit, []).append(value)
    return grouped
