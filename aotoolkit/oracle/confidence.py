"""How sure an oracle's answer is, from its probabilities and its consistency.

Confidence is never what the oracle says of itself, which is the worst calibrated of all measures
(arXiv:2605.26045). There are four, each of which is a number from 0 to 1:

- `forced_choice` (`Oracle.choose`): the softmax over candidate answers. It ranks right answers
  above wrong ones best, where the candidates are known.
- `log_probability`: the probability of the answer, word for word, end included. It costs nothing.
- `mode_frequency`: the share of k sampled answers that say the most frequent one.
- `agreement`: the share of read positions that, asked about alone, give the same answer.

None is the chance of being right until a calibration, fitted on held-out groups (organisms, people,
predicates) and stored in the contract, makes it one. A calibration holds for questions like those
that it was fitted on, and is used only under the settings that it was fitted with.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from aotoolkit.errors import CalibrationError, PrecisionNotReachedError
from aotoolkit.oracle.controls import normalise

AnswerConfidenceKind = Literal["log_probability", "mode_frequency", "agreement"]
ConfidenceKind = Literal["forced_choice", "log_probability", "mode_frequency", "agreement"]

# Fewer cannot be parted into those that a calibration is fitted on and those it is tested on.
MIN_GROUPS = 5

_COUNTED = frozenset({"mode_frequency", "agreement"})
_LEAST_PROBABILITY = 1e-9
_FOLDS = 5
_MOST_TEMPERATURE = 100.0
_LEAST_TEMPERATURE = 0.01


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How sure one answer is.

    Attributes:
        kind: How it was measured.
        value: From 0 to 1; calibrated where `calibrated` says so, else `raw`.
        raw: As it was measured.
        calibrated: Whether a calibration of the contract was applied.
        n: How many samples (`mode_frequency`), positions (`agreement`), candidates
            (`forced_choice`) or tokens (`log_probability`) it is made of.
        settings: What else it depends on, as JSON: layers, positions (1, a window, or "span" where
            the caller chose several), coefficient, number and temperature of samples.
        counts: What the samples or positions said, normalised -> how often, most frequent first;
            empty for the other kinds.
        log_probs: Those of the candidates, for `forced_choice`; empty for the other kinds.
        abstain: Whether it is below the calibration's threshold; None where there is none.
    """

    kind: ConfidenceKind
    value: float
    raw: float
    calibrated: bool = False
    n: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    log_probs: tuple[float, ...] = ()
    abstain: bool | None = None

    def __str__(self) -> str:
        state = "calibrated" if self.calibrated else "not calibrated"
        verdict = ", too low to answer" if self.abstain else ""
        return f"{self.kind.replace('_', ' ')} {self.value:.2f}, {state}{verdict}"


def forced_choice(
    log_probs: Sequence[float], *, settings: Mapping[str, Any] | None = None
) -> Confidence:
    """Confidence in the likeliest of several candidates: their softmax.

    Args:
        log_probs: Of each candidate as the whole reply, nats.
        settings: See `Confidence`.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    raw = float(_softmax(values, 1.0).max())
    return Confidence(
        kind="forced_choice",
        value=raw,
        raw=raw,
        n=len(values),
        settings=dict(settings or {}),
        log_probs=tuple(float(value) for value in values),
    )


def log_probability(
    log_prob: float, num_tokens: int, *, settings: Mapping[str, Any] | None = None
) -> Confidence:
    """Confidence in an answer: the probability of its tokens, end of turn included."""
    raw = min(1.0, math.exp(log_prob))
    return Confidence(
        kind="log_probability", value=raw, raw=raw, n=num_tokens, settings=dict(settings or {})
    )


def mode_frequency(
    samples: Sequence[str],
    *,
    key: Callable[[str], str] = normalise,
    settings: Mapping[str, Any] | None = None,
) -> tuple[int, Confidence]:
    """The most frequent of sampled answers, and the share that it has.

    Args:
        samples: What was said, at least once.
        key: What makes two answers the same; by default their words without case, punctuation and
            articles.
        settings: See `Confidence`.

    Returns:
        Index of the first sample that says the most frequent answer (the one that came first where
        two are as frequent), and the confidence.
    """
    keys = [key(sample) for sample in samples]
    counts = _counts(keys)
    mode = next(iter(counts))
    raw = counts[mode] / len(keys)
    return keys.index(mode), Confidence(
        kind="mode_frequency",
        value=raw,
        raw=raw,
        n=len(keys),
        settings=dict(settings or {}),
        counts=counts,
    )


def agreement(
    text: str,
    by_position: Sequence[str],
    *,
    key: Callable[[str], str] = normalise,
    settings: Mapping[str, Any] | None = None,
) -> Confidence:
    """The share of positions that, asked about alone, give the answer that all together give.

    Args:
        text: The answer about all positions.
        by_position: What was said about each alone.
        key: As for `mode_frequency`.
        settings: See `Confidence`.
    """
    counts = _counts([key(said) for said in by_position])
    raw = counts.get(key(text), 0) / len(by_position)
    return Confidence(
        kind="agreement",
        value=raw,
        raw=raw,
        n=len(by_position),
        settings=dict(settings or {}),
        counts=counts,
    )


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The confidence from which on answers are given.

    Attributes:
        value: The least confidence at which an answer is given.
        precision: Share of right answers among those given, where the threshold was chosen.
        coverage: Share of all answers that are given.
        num_answered: How many that were.
    """

    value: float
    precision: float
    coverage: float
    num_answered: int


def threshold_for_precision(
    confidences: Sequence[float],
    correct: Sequence[bool | int],
    precision: float,
    *,
    min_answered: int = 10,
) -> Threshold:
    """The lowest threshold at which the answers given are as often right as stated.

    Choose it on answers that are not those it is then reported on: the best of many thresholds
    looks better than it is, the more so the fewer answers it leaves.

    Args:
        confidences: One for each answer.
        correct: Whether it is right.
        precision: Wanted share of right answers, above 0 up to 1.
        min_answered: Thresholds that leave fewer answers prove nothing and are not considered.

    Raises:
        PrecisionNotReachedError: No threshold does.
        CalibrationError: The lists are empty, of different lengths, or hold NaN.
    """
    values, right = _checked(confidences, correct)
    if not 0 < precision <= 1:
        raise CalibrationError(f"precision is {precision}; give a share above 0, up to 1.")
    if min_answered < 1:
        raise CalibrationError(f"min_answered is {min_answered}; give 1 or more.")
    order = np.argsort(-values, kind="stable")
    answered = np.arange(1, len(values) + 1)
    shares = right[order].cumsum() / answered
    ranked = values[order]
    # Answers of equal confidence are given together.
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    possible = np.flatnonzero(last_of_ties & (answered >= min_answered))
    reaching = [index for index in possible if shares[index] >= precision]
    if not reaching:
        if len(possible):
            best = max(possible, key=lambda index: shares[index])
            found = (
                f"the best is {shares[best]:.3f}, with {answered[best]} of {len(values)} answers "
                f"given (confidence {ranked[best]:.3f} and above)"
            )
        else:
            found = f"there are only {len(values)} answers, and {min_answered} must be given"
        raise PrecisionNotReachedError(
            f"No threshold reaches a precision of {precision}: {found}. Ask for less, or use a "
            "confidence that ranks better."
        )
    at = max(reaching)
    return Threshold(
        value=float(ranked[at]),
        precision=float(shares[at]),
        coverage=float(answered[at] / len(values)),
        num_answered=int(answered[at]),
    )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns one kind of confidence into a chance of being right.

    For `forced_choice` the candidates' log-probabilities are divided by a temperature before the
    softmax (Guo et al. 2017). The other kinds have no candidates to be compared with, so their
    log-odds are divided by a temperature and shifted by a bias (Platt 1999).

    Attributes:
        kind: The kind of confidence.
        temperature: Above 1 where the oracle is too sure.
        bias: Added to the log-odds; 0 for `forced_choice`.
        settings: Those of the confidences that it was fitted on; others are not calibrated by it.
        n: Number of groups that it was fitted on.
        unit: What a group is.
        num_items: Number of answers.
        log_loss_before: Mean negative log-likelihood (nats) of being right, as measured.
        log_loss_after: The same when calibrated by the other groups (cross-validated by group).
            Where that is not less, the confidence was as good before: do not store this.
        threshold: Calibrated confidence below which an answer abstains; None for no threshold.
        precision: The precision that `threshold` was chosen for.
    """

    kind: ConfidenceKind
    temperature: float
    bias: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    n: int
    unit: str
    num_items: int
    log_loss_before: float
    log_loss_after: float
    threshold: float | None = None
    precision: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConfidenceKind):
            raise CalibrationError(
                f"kind is {self.kind!r}; allowed are {', '.join(get_args(ConfidenceKind))}."
            )
        for name in ("temperature", "bias", "log_loss_before", "log_loss_after"):
            value = getattr(self, name)
            if not _is_number(value):
                raise CalibrationError(f"{name} is {value!r}; it must be a finite number.")
        if self.temperature <= 0:
            raise CalibrationError(f"temperature is {self.temperature}; it must be above 0.")
        for name in ("threshold", "precision"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise CalibrationError(f"{name} is {value!r}; it must be from 0 to 1, or absent.")
        if not isinstance(self.settings, Mapping):
            raise CalibrationError(f"settings is {self.settings!r}; it must be a mapping.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A calibration as a contract stores it.

        Raises:
            CalibrationError: A field is missing, unknown or not allowed.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise CalibrationError(f"{values!r} is no calibration: {error}.") from error

    def fits(self, confidence: Confidence) -> bool:
        """Whether a confidence is of the kind, and measured under the settings, of this one."""
        return confidence.kind == self.kind and confidence.settings == self.settings

    def apply(self, confidence: Confidence) -> Confidence:
        """The confidence as a chance of being right.

        Raises:
            CalibrationError: It is of another kind, or was measured under other settings.
        """
        if not self.fits(confidence):
            raise CalibrationError(
                f"A calibration of {self.kind!r} under {dict(self.settings)} says nothing about "
                f"{confidence.kind!r} under {dict(confidence.settings)}. Fit one for that."
            )
        features = _Features.of([confidence])
        value = float(features.calibrated(self.temperature, self.bias)[0])
        abstain = None if self.threshold is None else value < self.threshold
        return replace(confidence, value=value, calibrated=True, abstain=abstain)


def fit_calibration(
    confidences: Sequence[Confidence],
    correct: Sequence[bool | int],
    groups: Sequence[Hashable],
    *,
    unit: str = "organism",
    precision: float | None = None,
) -> Calibration:
    """Fits a calibration on answers of groups that the oracle was not trained on.

    Args:
        confidences: Of the answers, of one kind and under one setting.
        correct: Whether the answer (for a forced choice, the likeliest candidate) is right.
        groups: What the answer is about (organism, person, predicate); at least five. Those that
            a calibration is tested on are never those that it was fitted on.
        unit: What a group is.
        precision: Chooses the abstention threshold for it, on cross-validated confidences.

    Raises:
        CalibrationError: Too few groups, answers all right or all wrong, confidences of several
            kinds or settings, lists of different lengths.
        PrecisionNotReachedError: No threshold reaches `precision`.
    """
    raws, right = _fittable(confidences, correct, groups)
    first = confidences[0]
    held_out = cross_calibrated(confidences, correct, groups)
    temperature, bias = _Features.of(confidences).fit(right)
    return Calibration(
        kind=first.kind,
        temperature=temperature,
        bias=bias,
        settings=dict(first.settings),
        n=len(set(groups)),
        unit=unit,
        num_items=len(right),
        log_loss_before=_log_loss(raws, right),
        log_loss_after=_log_loss(np.array(held_out), right),
        threshold=(
            None
            if precision is None
            else threshold_for_precision(held_out, right.tolist(), precision).value
        ),
        precision=precision,
    )


def cross_calibrated(
    confidences: Sequence[Confidence],
    correct: Sequence[bool | int],
    groups: Sequence[Hashable],
) -> list[float]:
    """Each confidence as calibrated by other groups than its own: what a calibration is worth.

    Args:
        confidences: As for `fit_calibration`.
        correct: As there.
        groups: As there; they are dealt into five parts (`group_folds`).

    Raises:
        CalibrationError: As there.
    """
    _, right = _fittable(confidences, correct, groups)
    features, fold = _Features.of(confidences), group_folds(groups)
    held_out = np.empty(len(right))
    for number in range(_FOLDS):
        test = fold == number
        held_out[test] = features[test].calibrated(*features[~test].fit(right[~test]))
    return held_out.tolist()


def group_folds(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """[n], the part (of five) of each group: all of a group are in one."""
    folds = {name: number % _FOLDS for number, name in enumerate(dict.fromkeys(groups))}
    return np.array([folds[group] for group in groups])


def _fittable(
    confidences: Sequence[Confidence],
    correct: Sequence[bool | int],
    groups: Sequence[Hashable],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Raw confidences and verdicts, once it is sure that a calibration can be fitted on them."""
    raws, right = _checked([confidence.raw for confidence in confidences], correct)
    if len(groups) != len(right):
        raise CalibrationError(f"{len(right)} answers and {len(groups)} groups; give one for each.")
    first = confidences[0]
    for confidence in confidences:
        if confidence.kind != first.kind or confidence.settings != first.settings:
            raise CalibrationError(
                f"Confidences of {first.kind!r} with {dict(first.settings)} and of "
                f"{confidence.kind!r} with {dict(confidence.settings)} cannot share a calibration; "
                "fit one for each."
            )
    names = list(dict.fromkeys(groups))
    if len(names) < MIN_GROUPS:
        raise CalibrationError(
            f"There are {len(names)} groups; a calibration needs at least {MIN_GROUPS} to be "
            "fitted on some and tested on others."
        )
    if right.all() or not right.any():
        raise CalibrationError(
            f"All {len(right)} answers are {'right' if right.all() else 'wrong'}; a calibration "
            "needs both."
        )
    return raws, right


@dataclass(frozen=True)
class _Features:
    """What a calibration looks at: log-odds [n], or the candidates' log-probabilities [n, c]."""

    values: NDArray[np.float64]

    @classmethod
    def of(cls, confidences: Sequence[Confidence]) -> Self:
        if confidences[0].kind == "forced_choice":
            most = max(confidence.n for confidence in confidences)
            rows = np.full((len(confidences), most), -np.inf)
            for row, confidence in zip(rows, confidences, strict=True):
                row[: confidence.n] = confidence.log_probs
            return cls(rows)
        raw = np.array([confidence.raw for confidence in confidences])
        if confidences[0].kind in _COUNTED:
            # All of k samples is not certainty: half a sample is added to either side.
            n = np.array([confidence.n for confidence in confidences])
            raw = (raw * n + 0.5) / (n + 1)
        raw = raw.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        return cls(np.log(raw) - np.log1p(-raw))

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "_Features":
        return _Features(self.values[chosen])

    def calibrated(self, temperature: float, bias: float) -> NDArray[np.float64]:
        """[n], the chance of being right."""
        if self.values.ndim == 2:
            return _softmax(self.values, temperature).max(-1)
        return np.exp(-np.logaddexp(0.0, -(self.values / temperature + bias)))

    def fit(self, right: NDArray[np.bool_]) -> tuple[float, float]:
        """Temperature and bias of the least log loss."""
        from scipy.optimize import minimize

        # Platt's targets: a little short of 0 and 1, so that separable answers have an optimum.
        positive, negative = right.sum(), (~right).sum()
        targets = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
        with_bias = self.values.ndim == 1

        def loss(parameters: NDArray[np.float64]) -> float:
            bias = parameters[1] if with_bias else 0.0
            return _log_loss(self.calibrated(math.exp(parameters[0]), bias), targets)

        limits = [(math.log(_LEAST_TEMPERATURE), math.log(_MOST_TEMPERATURE))]
        starts = [math.log(0.1), 0.0, math.log(10)]
        found = min(
            (
                minimize(
                    loss,
                    [start, 0.0][: 1 + with_bias],
                    method="L-BFGS-B",
                    bounds=[*limits, (-20, 20)][: 1 + with_bias],
                )
                for start in starts
            ),
            key=lambda result: result.fun,
        )
        return math.exp(found.x[0]), float(found.x[1]) if with_bias else 0.0


def _counts(keys: Sequence[str]) -> dict[str, int]:
    if not keys:
        raise CalibrationError("There is no sample, or no position, to count; give at least one.")
    return dict(Counter(keys).most_common())


def _softmax(values: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    scaled = values / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _log_loss(confidences: NDArray[np.float64], targets: NDArray[Any]) -> float:
    p = confidences.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return float(-np.mean(targets * np.log(p) + (1 - targets) * np.log1p(-p)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _checked(
    confidences: Sequence[float], correct: Sequence[bool | int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct)
    if len(values) != len(right) or not len(values):
        raise CalibrationError(
            f"{len(values)} confidences and {len(right)} verdicts; give one verdict for each "
            "confidence, and at least one."
        )
    if not np.isfinite(values).all() or not np.isin(right, (0, 1)).all():
        raise CalibrationError(
            "Confidences must be finite numbers, and verdicts true or false (1 or 0)."
        )
    return values, right.astype(bool)
