"""Scores of answers, and of how sure they are.

Metrics of one answer (`word_match`, `token_f1`, `rouge_l`, `grade_answer`) take texts and give the
score of that item; `aotoolkit.evals.statistics` puts intervals around their means. Metrics of a
set of answers (`auroc`, `accuracy`, `expected_calibration_error`, `brier_score`, `reliability`)
take one number for each. scikit-learn computes what it has. No metric needs a model as its judge.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from aotoolkit.data.abstention import ABSTENTION_ANSWER
from aotoolkit.errors import ScoreError
from aotoolkit.evals.statistics import Estimate, bootstrap_mean

Grade = Literal["right", "general", "wrong", "refuses"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
# What oracles and chat models say where they do not answer.
_REFUSALS = re.compile(
    r"\b(can(no|')?t (tell|say|determine|answer|help|share|reveal|disclose)"
    r"|can not (tell|say|determine|answer|help|share|reveal|disclose)"
    r"|(don't|do not) know|(not|am not|i'm not) (able|allowed) to|unable to"
    r"|(i'm|i am) (sorry|not sure)|won't (tell|say|answer|reveal|share)"
    r"|(no|not enough) information|impossible to (tell|say|know))\b"
)


# One answer


def word_match(text: str, words: str | Sequence[str]) -> bool:
    """Whether a text names one of the words (or phrases), whole and in any case.

    Raises:
        ScoreError: There is no word, or an empty one.
    """
    wanted = [words] if isinstance(words, str) else list(words)
    if not wanted or not all(word.strip() for word in wanted):
        raise ScoreError(f"words is {words!r}; give one or more words that are not empty.")
    folded = _folded(text)
    return any(
        # Not \b, which lies inside a word that begins or ends with a sign, as "C++" does.
        re.search(rf"(?<!\w){re.escape(_folded(word.strip()))}(?!\w)", folded)
        for word in wanted
    )


def token_f1(prediction: str, references: str | Sequence[str]) -> float:
    """F1 of the words that an answer shares with a reference, the best over several references.

    SQuAD's (Rajpurkar et al. 2016): lower case, without punctuation and articles; 1 where both are
    empty then, 0 where one is.

    Raises:
        ScoreError: There is no reference.
    """
    return max(_token_f1(prediction, reference) for reference in _references(references))


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """ROUGE-L: F1 over the longest common subsequence of words, the best over several references.

    Lin 2004, as the package `rouge-score` computes it without stemming; where that drops every
    letter that is not ASCII, words of all scripts count here.

    Raises:
        ScoreError: There is no reference.
    """
    ours = _WORD.findall(_folded(prediction))
    best = 0.0
    for reference in _references(references):
        theirs = _WORD.findall(_folded(reference))
        if ours and theirs:
            # 2PR / (P + R) with P = common / |ours|, R = common / |theirs|
            best = max(best, 2 * _common_subsequence(ours, theirs) / (len(ours) + len(theirs)))
    return best


def refuses(text: str) -> bool:
    """Whether an answer says that it does not answer: empty, an abstention, or a refusal.

    By wording, in English; an answer that also names something is still a refusal.
    """
    folded = _folded(text).translate(_APOSTROPHES)
    return (
        not folded.strip()
        or _folded(ABSTENTION_ANSWER) in folded
        or _REFUSALS.search(folded) is not None
    )


def grade_answer(text: str, *, right: Sequence[str], general: Sequence[str] = ()) -> Grade:
    """How specific and how right an answer is, against ground truth, without a judge.

    Args:
        text: The answer.
        right: Words that name the truth itself.
        general: Words that are true of it and of more (its kind, its colour).

    Returns:
        `right` where a word of `right` is named; else `refuses` where the answer refuses; else
        `general` where a word of `general` is named; else `wrong`.

    Raises:
        ScoreError: `right` is empty, or a word is.
    """
    if word_match(text, right):
        return "right"
    if refuses(text):
        return "refuses"
    return "general" if general and word_match(text, general) else "wrong"


def grade_rates(
    grades: Sequence[Sequence[Grade]], *, unit: str = "organism", seed: int = 0
) -> dict[Grade, Estimate]:
    """Share of each grade (vagueness is `general`, hallucination `wrong`), with intervals.

    Args:
        grades: Those of each unit's answers.
        unit: What n counts.
        seed: Of the bootstrap.

    Raises:
        ScoreError: There is no unit, one without grades, or an unknown grade.
    """
    if unknown := {grade for of_unit in grades for grade in of_unit} - set(get_args(Grade)):
        raise ScoreError(f"{sorted(unknown)} are no grades; they are {get_args(Grade)}.")
    return {
        grade: bootstrap_mean(
            [[float(given == grade) for given in of_unit] for of_unit in grades],
            unit=unit,
            seed=seed,
            bounds=(0.0, 1.0),
        )
        for grade in get_args(Grade)
    }


# Sets of answers


def accuracy(predictions: Sequence[Hashable], truths: Sequence[Hashable]) -> float:
    """Share of predictions that equal their truth.

    Raises:
        ScoreError: There is none, or their numbers differ.
    """
    _same_length(predictions=predictions, truths=truths)
    return float(np.mean([ours == truth for ours, truth in zip(predictions, truths, strict=True)]))


def auroc(scores: Sequence[float], labels: Sequence[bool | int]) -> float:
    """Chance that a positive item has a higher score than a negative one; ties count half.

    Raises:
        ScoreError: There is only one class, no item, a score that is NaN, or a label that is
            neither true nor false.
    """
    values, truths = _finite(scores, "scores"), _binary(labels, "labels")
    _same_length(scores=scores, labels=labels)
    if truths.all() or not truths.any():
        raise ScoreError(
            f"All {len(truths)} labels are {bool(truths[0])}; AUROC compares two classes. Give "
            "items of both."
        )
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truths, values))


def brier_score(confidences: Sequence[float], correct: Sequence[bool | int]) -> float:
    """Mean squared distance of confidence from being right (1) or wrong (0); 0 is best.

    Raises:
        ScoreError: There is no item, or a confidence outside 0 to 1.
    """
    values, truths = _calibration_input(confidences, correct)
    return float(np.mean((values - truths) ** 2))


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[bool | int], *, num_bins: int = 10
) -> float:
    """Mean distance of confidence from accuracy over bins of equal width, weighted by their items.

    Guo et al. 2017. A bin holds its upper end, and the first holds 0 too. The error of n items
    that are perfectly calibrated is above 0: bins of few items scatter.

    Raises:
        ScoreError: There is no item or no bin, or a confidence outside 0 to 1.
    """
    values, truths = _calibration_input(confidences, correct)
    index = _bin_index(values, num_bins)
    gaps = np.bincount(index, weights=values - truths, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(values))


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The answers of one range of confidence.

    Attributes:
        low: Lower end of the range, excluded (but for 0).
        high: Upper end.
        confidence: Mean confidence of the answers in it.
        accuracy: Share of them that is right, its interval over units (organisms), and their n.
        num_items: Number of answers.
    """

    low: float
    high: float
    confidence: float
    accuracy: Estimate
    num_items: int


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What a reliability diagram shows.

    Attributes:
        bins: The ranges that hold answers, from low to high.
        ece: Expected calibration error.
        brier: Brier score.
        auroc: Of confidence for being right; None where all answers are right, or all wrong.
        num_items: Number of answers.
        n: Number of units.
        unit: What n counts.
    """

    bins: tuple[ReliabilityBin, ...]
    ece: float
    brier: float
    auroc: float | None
    num_items: int
    n: int
    unit: str


def reliability(
    confidences: Sequence[float],
    correct: Sequence[bool | int],
    groups: Sequence[Hashable],
    *,
    num_bins: int = 10,
    unit: str = "organism",
    seed: int = 0,
) -> Reliability:
    """Accuracy by confidence, with intervals over units.

    Args:
        confidences: One for each answer, from 0 to 1.
        correct: Whether the answer is right.
        groups: The unit that the answer is of.
        num_bins: Bins of equal width.
        unit: What a group is.
        seed: Of the bootstrap.

    Raises:
        ScoreError: The lists differ in length or are empty, a confidence is outside 0 to 1,
            or there is no bin.
    """
    values, truths = _calibration_input(confidences, correct)
    _same_length(confidences=confidences, groups=groups)
    index = _bin_index(values, num_bins)
    bins = []
    for number in sorted(set(index.tolist())):
        members = np.flatnonzero(index == number)
        by_unit: dict[Hashable, list[float]] = {}
        for item in members.tolist():
            by_unit.setdefault(groups[item], []).append(float(truths[item]))
        interval = bootstrap_mean(
            list(by_unit.values()), unit=unit, seed=seed, bounds=(0.0, 1.0), weighted=True
        )
        bins.append(
            ReliabilityBin(
                low=number / num_bins,
                high=(number + 1) / num_bins,
                confidence=float(values[members].mean()),
                accuracy=interval,
                num_items=len(members),
            )
        )
    one_class = truths.all() or not truths.any()
    return Reliability(
        bins=tuple(bins),
        ece=expected_calibration_error(confidences, correct, num_bins=num_bins),
        brier=brier_score(confidences, correct),
        auroc=None if one_class else auroc(confidences, correct),
        num_items=len(values),
        n=len(set(groups)),
        unit=unit,
    )


def fold(text: str) -> str:
    """A text without what does not make it another answer: case, and forms of a character."""
    return unicodedata.normalize("NFKC", text).lower().strip()


def named(text: str, candidates: Collection[str]) -> set[str]:
    """The candidates, folded, that a text names as whole words.

    Of two candidates one of which lies in the other ("pop", "Arabic pop") the longer is named.
    """
    left = fold(text)
    found = set()
    for candidate in sorted({fold(candidate) for candidate in candidates}, key=len, reverse=True):
        left, count = re.subn(rf"(?<!\w){re.escape(candidate)}(?!\w)", "\0", left)
        if candidate and count:
            found.add(candidate)
    return found


def names_one(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text names, where it is exactly one; see `named`."""
    found = named(text, choices)
    by_fold = {fold(choice): choice for choice in choices}
    return by_fold[found.pop()] if len(found) == 1 else None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _references(references: str | Sequence[str]) -> list[str]:
    found = [references] if isinstance(references, str) else list(references)
    if not found:
        raise ScoreError("There is no reference to compare the answer with; give one or more.")
    return found


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _folded(text).translate(_PUNCTUATION)).split()


def _token_f1(prediction: str, reference: str) -> float:
    ours, theirs = _squad_words(prediction), _squad_words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def _common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0  # the row above, one to the left
        for col, other in enumerate(theirs, start=1):
            above = row[col]
            row[col] = before + 1 if word == other else max(above, row[col - 1])
            before = above
    return row[-1]


def _same_length(**lists: Sequence[object]) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ScoreError(
            f"Each item needs one of each, and there must be an item; the lengths are {lengths}."
        )


def _finite(values: Sequence[float], name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ScoreError(f"{name} hold NaN or infinity; leave out items without a score.")
    return array


def _binary(values: Sequence[bool | int], name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if not np.isin(array, (0, 1)).all():
        raise ScoreError(f"{name} hold something else than true and false (or 1 and 0).")
    return array.astype(bool)


def _calibration_input(
    confidences: Sequence[float], correct: Sequence[bool | int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, truths = _finite(confidences, "confidences"), _binary(correct, "correct")
    _same_length(confidences=confidences, correct=correct)
    if values.min() < 0 or values.max() > 1:
        raise ScoreError(
            f"confidences go from {values.min():.3g} to {values.max():.3g}; a confidence is a "
            "probability, from 0 to 1. A log-probability is made one by exp."
        )
    return values, truths


def _bin_index(values: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    if num_bins < 1:
        raise ScoreError(f"num_bins is {num_bins}; give 1 or more.")
    edges = np.arange(1, num_bins) / num_bins
    return np.searchsorted(edges, values, side="left")
