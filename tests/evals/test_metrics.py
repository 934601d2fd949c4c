"""Metrics against rouge-score, scikit-learn and SQuAD's own definition, and hostile input."""

import re
import string
from collections import Counter

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from aotoolkit.errors import ScoreError
from aotoolkit.evals.metrics import (
    accuracy,
    auroc,
    brier_score,
    expected_calibration_error,
    grade_answer,
    grade_rates,
    refuses,
    reliability,
    rouge_l,
    token_f1,
    word_match,
)

SENTENCES = st.lists(
    st.sampled_from(["the", "a", "Cat", "cat,", "sat", "on", "mat.", "it's", "x-y", "9"]),
    max_size=12,
).map(" ".join)
ASCII = st.one_of(SENTENCES, st.text(st.characters(max_codepoint=127), max_size=60))
JUDGED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def squad_f1(prediction: str, truth: str) -> float:
    """The official evaluation script of SQuAD 2.0, written out."""

    def words(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    ours, theirs = words(prediction), words(truth)
    if not ours or not theirs:
        return int(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


@given(ASCII, ASCII)
def test_token_f1_is_squads(prediction, truth):
    assert token_f1(prediction, truth) == pytest.approx(squad_f1(prediction, truth))


@given(ASCII, ASCII)
def test_rouge_l_is_rouge_scores(prediction, truth):
    theirs = rouge_scorer.RougeScorer(["rougeL"]).score(truth, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, truth) == pytest.approx(theirs)


@given(st.text(), st.text())
def test_scores_of_any_text_stay_between_0_and_1_and_are_symmetric(one, two):
    for metric in (token_f1, rouge_l):
        assert 0 <= metric(one, two) <= 1
        assert metric(one, two) == pytest.approx(metric(two, one))
    assert token_f1(one, one) == 1
    assert isinstance(refuses(one), bool)


def test_words_of_other_scripts_count():
    assert rouge_l("слово вода", "вода") == pytest.approx(2 / 3)
    assert rouge_l("cafe\u0301", "caf\u00e9") == 1  # composed or not


def test_the_best_reference_counts():
    assert token_f1("a lighthouse", ["tower", "the lighthouse"]) == 1
    assert rouge_l("lighthouse", ["tower", "the lighthouse"]) == pytest.approx(2 / 3)
    for metric in (token_f1, rouge_l):
        with pytest.raises(ScoreError, match="reference"):
            metric("lighthouse", [])


@pytest.mark.parametrize(
    ("text", "words", "named"),
    [
        ("It is a Lighthouse.", "lighthouse", True),
        ("Lighthouses!", "lighthouse", False),
        ("light house", "lighthouse", False),
        ("C++, surely", "C++", True),
        ("C+", "C++", False),
        ("New   York", "York", True),
        ("(a.b)", "a.b", True),
        ("axb", "a.b", False),
        ("the \uff4d\uff4f\uff4f\uff4e", "moon", True),
        ("sun or moon", ["moon", "star"], True),
        ("", "moon", False),
    ],
)
def test_a_word_is_named_whole_and_in_any_case(text, words, named):
    assert word_match(text, words) is named


@given(st.text(min_size=1), st.text(st.sampled_from(" .,;!?\n"), max_size=3))
def test_any_word_is_found_among_punctuation(word, around):
    assume(word.strip())
    assert word_match(f"({around}{word}{around})", word)


@pytest.mark.parametrize("words", ["", "  ", [], ["moon", ""]])
def test_no_word_is_an_error(words):
    with pytest.raises(ScoreError, match="words"):
        word_match("moon", words)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("The word is lighthouse.", "right"),
        ("It is some kind of building.", "general"),
        ("The word is river.", "wrong"),
        ("I can't tell from these activations.", "refuses"),
        ("I can\u2019t say, maybe a building.", "refuses"),
        ("I'm sorry, but I cannot help with that.", "refuses"),
        ("I do not know.", "refuses"),
        ("  ", "refuses"),
        ("The cannery", "wrong"),
    ],
)
def test_grades(text, grade):
    assert grade_answer(text, right=["lighthouse"], general=["building", "place"]) == grade


def test_rates_of_grades_add_up_over_units():
    rates = grade_rates([["right", "wrong"], ["refuses"], ["right", "right"]], unit="person")
    assert sum(rate.mean for rate in rates.values()) == pytest.approx(1)
    assert rates["right"].mean == pytest.approx((0.5 + 0 + 1) / 3)
    assert (rates["general"].n, rates["general"].unit) == (3, "person")
    assert rates["general"].mean == 0 < rates["general"].high  # three people rule out little
    with pytest.raises(ScoreError, match="vague"):
        grade_rates([["vague"]])  # pyright: ignore


@given(JUDGED)
def test_brier_and_auroc_are_scikit_learns(judged):
    scores, labels = zip(*judged, strict=True)
    assert brier_score(scores, labels) == pytest.approx(
        sklearn.metrics.brier_score_loss(labels, scores, pos_label=True, labels=[False, True])
    )
    assume(0 < sum(labels) < len(labels))
    pairs = [
        (a > b) + 0.5 * (a == b) for a, right in judged if right for b, other in judged if not other
    ]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))


@given(JUDGED, st.integers(1, 15))
def test_calibration_error_is_the_sum_over_bins(judged, num_bins):
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = [(c, r) for c, r in judged if low < c <= high or (number == 0 and c == 0)]
        if inside:
            total += abs(sum(c - r for c, r in inside))
    confidences, correct = zip(*judged, strict=True)
    assert expected_calibration_error(confidences, correct, num_bins=num_bins) == pytest.approx(
        total / len(judged)
    )


def test_a_reliability_diagram_agrees_with_scikit_learns():
    rng = np.random.default_rng(0)
    confidences = rng.random(500)
    correct = rng.random(500) < confidences**2
    found = reliability(confidences, correct, np.arange(500) % 25, num_bins=8, unit="word")
    shares, means = sklearn.calibration.calibration_curve(correct, confidences, n_bins=8)
    assert [b.accuracy.mean for b in found.bins] == pytest.approx(shares)
    assert [b.confidence for b in found.bins] == pytest.approx(means)
    assert sum(b.num_items for b in found.bins) == found.num_items == 500
    assert (found.n, found.unit) == (25, "word")
    assert all(b.accuracy.low <= b.accuracy.mean <= b.accuracy.high for b in found.bins)
    gaps = [b.num_items * abs(b.confidence - b.accuracy.mean) for b in found.bins]
    assert found.ece == pytest.approx(sum(gaps) / 500)
    assert found.brier == brier_score(confidences, correct)
    assert found.auroc == auroc(confidences, correct)


def test_answers_that_are_all_right_have_a_diagram_without_auroc():
    found = reliability([1.0, 0.95], [True, True], ["a", "b"])
    assert found.auroc is None
    assert [b.num_items for b in found.bins] == [2]
    assert found.bins[0].accuracy.low < 1  # two units do not make it certain


def test_accuracy():
    assert accuracy(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: accuracy([], []),
        lambda: accuracy(["a"], ["a", "b"]),
        lambda: auroc([0.1, 0.2], [1, 1]),
        lambda: auroc([0.1, float("nan")], [0, 1]),
        lambda: auroc([0.1, 0.2], [0, 2]),
        lambda: auroc([], []),
        lambda: brier_score([1.2], [1]),
        lambda: brier_score([-3.0], [1]),
        lambda: brier_score([0.5], [1, 0]),
        lambda: expected_calibration_error([0.5], [1], num_bins=0),
        lambda: expected_calibration_error([], []),
        lambda: reliability([0.5], [1], []),
    ],
)
def test_what_cannot_be_scored_is_an_error(wrong):
    with pytest.raises(ScoreError):
        wrong()
