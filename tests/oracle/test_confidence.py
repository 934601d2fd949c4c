"""Confidence: each measure by hand, known miscalibration, and the embedded oracle."""

import json
import math

import numpy as np
import pytest
import sklearn.linear_model
import torch
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import (
    CalibrationError,
    ContractError,
    GenerationError,
    PositionError,
    PrecisionNotReachedError,
)
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.confidence import (
    Calibration,
    agreement,
    fit_calibration,
    forced_choice,
    log_probability,
    mode_frequency,
    threshold_for_precision,
)

QUESTION = "What is the secret word?"
MADE = {"temperature": 2.0, "n": 20, "unit": "word", "num_items": 200}
LOSSES = {"log_loss_before": 0.7, "log_loss_after": 0.5}


# Each measure


def test_the_mode_is_the_most_frequent_answer_whatever_its_case_and_articles():
    index, confidence = mode_frequency(["A boat.", "the lion", "Lion", "LION!", "boat"])
    assert index == 1
    assert confidence.value == confidence.raw == 3 / 5
    assert confidence.counts == {"lion": 3, "boat": 2}
    assert (confidence.n, confidence.calibrated) == (5, False)


def test_of_two_modes_the_first_said_is_taken():
    assert mode_frequency(["boat", "lion", "lion", "boat"])[0] == 0


def test_what_makes_two_answers_the_same_can_be_said():
    _, confidence = mode_frequency(["It is lion", "lion", "x"], key=lambda text: text.split()[-1])
    assert confidence.counts == {"lion": 2, "x": 1}


def test_agreement_is_the_share_of_positions_that_say_the_same():
    assert agreement("The lion.", ["lion", "boat", "Lion!", "tree"]).value == 0.5
    assert agreement("The lion.", ["boat"]).value == 0


@given(st.lists(st.text(max_size=3), min_size=1, max_size=20))
def test_any_samples_have_a_mode(samples):
    index, confidence = mode_frequency(samples)
    assert 1 / len(samples) <= confidence.value <= 1
    assert sum(confidence.counts.values()) == len(samples)
    assert agreement(samples[index], samples).value == confidence.value


def test_nothing_to_count_is_an_error():
    with pytest.raises(CalibrationError, match="at least one"):
        mode_frequency([])
    with pytest.raises(CalibrationError, match="at least one"):
        agreement("lion", [])


@given(st.lists(st.floats(-1e4, 0), min_size=2, max_size=20))
def test_a_forced_choice_is_a_softmax(log_probs):
    expected = torch.tensor(log_probs, dtype=torch.float64).softmax(0).max()
    assert forced_choice(log_probs).value == pytest.approx(float(expected))


def test_a_very_improbable_answer_has_confidence_0():
    assert log_probability(-1e4, 3).value == 0
    assert log_probability(math.log(0.25), 3).value == pytest.approx(0.25)


# Threshold


JUDGED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30
)


@given(JUDGED, st.floats(0.01, 1), st.integers(1, 5))
def test_the_threshold_is_the_lowest_that_reaches_the_precision(judged, precision, least):
    values, right = zip(*judged, strict=True)
    reached = []
    for value in sorted(set(values)):
        given_answers = [r for v, r in judged if v >= value]
        share = sum(given_answers) / len(given_answers)
        if len(given_answers) >= least and share >= precision:
            reached.append((value, share, len(given_answers)))
    if not reached:
        with pytest.raises(PrecisionNotReachedError):
            threshold_for_precision(values, right, precision, min_answered=least)
        return
    found = threshold_for_precision(values, right, precision, min_answered=least)
    assert (found.value, found.num_answered) == (reached[0][0], reached[0][2])
    assert found.precision == pytest.approx(reached[0][1])
    assert found.coverage == pytest.approx(found.num_answered / len(judged))


def test_a_precision_out_of_reach_names_the_best():
    with pytest.raises(PrecisionNotReachedError, match=r"best is 0\.750, with 4 of 8"):
        threshold_for_precision([0.9] * 4 + [0.1] * 4, [1, 1, 1, 0] + [0] * 4, 0.9, min_answered=2)
    with pytest.raises(PrecisionNotReachedError, match="only 2 answers"):
        threshold_for_precision([0.9, 0.8], [1, 1], 0.9)


@pytest.mark.parametrize(
    ("confidences", "correct", "options"),
    [
        ([], [], {"precision": 0.9}),
        ([0.5], [1, 0], {"precision": 0.9}),
        ([float("nan")], [1], {"precision": 0.9}),
        ([0.5], [3], {"precision": 0.9}),
        ([0.5], [1], {"precision": 0.0}),
        ([0.5], [1], {"precision": 1.5}),
        ([0.5], [1], {"precision": 0.9, "min_answered": 0}),
    ],
)
def test_what_no_threshold_can_be_made_of(confidences, correct, options):
    with pytest.raises(CalibrationError):
        threshold_for_precision(confidences, correct, **options)


# Calibration


def overconfident_choices(count: int, temperature: float) -> tuple[list, list, list]:
    """Choices whose log-probabilities are `temperature` times too far apart."""
    rng = np.random.default_rng(0)
    confidences, correct = [], []
    for _ in range(count):
        true = rng.normal(size=4)
        p = np.exp(true) / np.exp(true).sum()
        correct.append(bool(rng.choice(4, p=p) == true.argmax()))
        confidences.append(forced_choice((temperature * true).tolist()))
    return confidences, correct, [number % 20 for number in range(count)]


def test_temperature_scaling_finds_the_temperature_that_was_put_in():
    fitted = fit_calibration(*overconfident_choices(3000, 2.5), unit="word")
    assert fitted.temperature == pytest.approx(2.5, rel=0.1)
    assert fitted.bias == 0
    assert fitted.log_loss_after < fitted.log_loss_before
    assert (fitted.n, fitted.unit, fitted.num_items) == (20, "word", 3000)


def test_scaling_of_log_odds_is_scikit_learns_logistic_regression():
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.01, 0.99, 2000)
    odds = np.log(raw / (1 - raw))
    right = rng.random(2000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    fitted = fit_calibration(
        [log_probability(math.log(value), 2) for value in raw], right.tolist(), range(2000)
    )
    theirs = sklearn.linear_model.LogisticRegression(C=np.inf).fit(odds[:, None], right)
    assert 1 / fitted.temperature == pytest.approx(theirs.coef_[0, 0], abs=0.01)
    assert fitted.bias == pytest.approx(theirs.intercept_[0], abs=0.01)


def test_groups_that_a_calibration_is_tested_on_are_not_those_it_was_fitted_on():
    # Within each group confidence tells nothing; the groups differ in how often they are right.
    rng = np.random.default_rng(2)
    values, right, groups = [], [], []
    for group in range(10):
        values += rng.uniform(0.3, 0.7, 40).tolist()
        right += [group < 5] * 40
        groups += [group] * 40
    fitted = fit_calibration([log_probability(math.log(v), 1) for v in values], right, groups)
    assert fitted.log_loss_after > 0.66  # no better than a coin


def test_separable_answers_have_a_finite_calibration():
    values = [0.1] * 10 + [0.9] * 10
    fitted = fit_calibration(
        [log_probability(math.log(v), 1) for v in values], [0] * 10 + [1] * 10, list(range(20))
    )
    sure = fitted.apply(log_probability(math.log(0.9), 1))
    assert 0.8 < sure.value < 1


def test_all_samples_alike_is_not_certainty():
    calibration = Calibration(kind="mode_frequency", **MADE, **LOSSES)
    (_, few), (_, many) = mode_frequency(["lion"] * 2), mode_frequency(["lion"] * 50)
    assert few.raw == many.raw == 1
    assert calibration.apply(few).value < calibration.apply(many).value < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [0, 1, 2, 3] * 5}, "4 groups"),
        ({"groups": [0]}, "one for each"),
        ({"correct": [1] * 20}, "All 20 answers are right"),
        ({"correct": [0] * 20}, "All 20 answers are wrong"),
        ({"correct": [1]}, "verdict"),
        ({"confidences": [log_probability(-1, 1)] * 19 + [agreement("a", ["a"])]}, "one for each"),
        (
            {"confidences": [log_probability(-1, 1, settings={"layers": [i]}) for i in range(20)]},
            "layers",
        ),
    ],
)
def test_what_no_calibration_can_be_fitted_on(changes, message):
    arguments = {
        "confidences": [log_probability(-1, 1)] * 20,
        "correct": [0, 1] * 10,
        "groups": list(range(20)),
    }
    with pytest.raises(CalibrationError, match=message):
        fit_calibration(**(arguments | changes))


def test_a_threshold_is_chosen_with_the_calibration_and_makes_answers_abstain():
    choices = overconfident_choices(1000, 2.0)
    fitted = fit_calibration(*choices, precision=0.8)
    applied = [fitted.apply(confidence) for confidence in choices[0]]
    kept = [right for c, right in zip(applied, choices[1], strict=True) if not c.abstain]
    assert fitted.precision == 0.8
    assert 0 < len(kept) < 1000
    assert np.mean(kept) == pytest.approx(0.8, abs=0.05)
    assert "too low to answer" in str(min(applied, key=lambda c: c.value))
    with pytest.raises(PrecisionNotReachedError):
        fit_calibration(*overconfident_choices(100, 2.0), precision=1.0)


# In the contract


@pytest.fixture
def contract(golden) -> OracleContract:
    return golden.contract


def test_calibrations_are_stored_and_old_contracts_read(contract, tmp_path):
    before = contract.digest
    contract.write(tmp_path)
    assert "calibrations" not in json.loads((tmp_path / "oracle_contract.json").read_text())
    assert OracleContract.read(tmp_path) == contract

    settings = {"layers": [4], "coefficient": 1.0}
    one = Calibration(kind="forced_choice", settings=settings, threshold=0.6, **MADE, **LOSSES)
    calibrated = contract.with_calibration(one)
    calibrated.write(tmp_path)
    again = OracleContract.read(tmp_path)
    assert again == calibrated
    assert again.calibrations == (one,)
    assert again.digest != before

    other = Calibration(kind="forced_choice", settings=settings, **(MADE | LOSSES | {"n": 9}))
    assert calibrated.with_calibration(other).calibrations == (other,)


@pytest.mark.parametrize(
    "stored",
    [
        [{}],
        [3],
        ["temperature"],
        3,
        [{"kind": "self_report", **MADE, **LOSSES}],
        [{"kind": "agreement", **(MADE | {"temperature": 0}), **LOSSES}],
        [{"kind": "agreement", **(MADE | {"temperature": "2"}), **LOSSES}],
        [{"kind": "agreement", **MADE, **LOSSES, "threshold": 2}],
        [{"kind": "agreement", **MADE, **LOSSES, "settings": 3}],
        [{"kind": "agreement", **MADE, **LOSSES, "unknown": 3}],
        [{"kind": "agreement", **MADE, **LOSSES}] * 2,
    ],
)
def test_calibrations_that_are_none(contract, tmp_path, stored):
    path = contract.write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibrations": stored}))
    with pytest.raises(ContractError, match="alibration"):
        OracleContract.read(tmp_path)


def test_a_calibration_is_only_used_under_its_own_settings(contract):
    calibration = Calibration(kind="agreement", settings={"layers": [4]}, **MADE, **LOSSES)
    calibrated = contract.with_calibration(calibration).calibrated
    same = agreement("a", ["a", "a", "b"], settings={"layers": [4]})
    assert calibrated(same).calibrated
    assert calibrated(same).value != calibrated(same).raw == same.raw
    for other in (
        agreement("a", ["a", "a", "b"], settings={"layers": [2]}),
        log_probability(-1, 1, settings={"layers": [4]}),
    ):
        assert calibrated(other) == other
        with pytest.raises(CalibrationError, match="says nothing"):
            calibration.apply(other)


# Asking


@pytest.fixture(scope="module")
def reads(lab):
    """What three organisms say, read at the layer that is recommended."""
    layer = lab.oracle.contract.recommended.layers[0]
    chats = [{"role": "user", "content": "Give me a hint."}]
    return [
        lab.model.activations(chats, layers=layer, adapter=name)[-6:]
        for name in list(lab.organisms)[:3]
    ]


def ask(lab, acts, **options):
    return lab.oracle.ask(QUESTION, acts, max_new_tokens=12, **options)


def test_an_answer_has_no_confidence_unless_asked_for(lab, reads):
    assert ask(lab, reads[0]).confidence is None


def test_log_probability_is_that_of_the_answer_given(lab, reads):
    plain, sure = ask(lab, reads), ask(lab, reads, confidence="log_probability")
    for one, two in zip(plain, sure, strict=True):
        assert (one.text, dict(one.controls)) == (two.text, dict(two.controls))
        expected = math.exp(lab.oracle.score(QUESTION, reads[plain.index(one)], one.text))
        assert two.confidence.value == pytest.approx(expected, abs=1e-4)
        assert (two.confidence.kind, two.confidence.calibrated) == ("log_probability", False)


def test_mode_frequency_is_that_of_answers_sampled_by_hand(lab, reads):
    torch.manual_seed(0)
    answer = ask(lab, reads[0], confidence="mode_frequency", num_samples=12, controls=["zero"])
    torch.manual_seed(0)
    ask(lab, reads[0], controls=["zero"])
    samples = lab.oracle.ask(
        [QUESTION] * 12,
        reads[0],
        max_new_tokens=12,
        controls=False,
        do_sample=True,
        temperature=1.0,
    )
    texts = [sample.text for sample in samples]
    assert answer.confidence.value == max(map(texts.count, texts)) / 12
    assert texts.count(answer.text) / 12 == answer.confidence.value
    assert answer.confidence.settings["num_samples"] == 12
    assert answer.confidence.settings["temperature"] == 1.0
    assert dict(answer.controls) == dict(ask(lab, reads[0], controls=["zero"]).controls)
    assert answer.supported == (answer.text != answer.controls["zero"])
    assert not answer.sampled
    assert samples[0].sampled
    assert answer.log_prob == pytest.approx(
        lab.oracle.score(QUESTION, reads[0], answer.text), abs=1e-3
    )


def test_the_same_answer_every_time_is_certain(lab, reads):
    # Two words can lie closer than 1e-4 nats where nothing is to be read.
    answers = ask(lab, reads[:2], confidence="mode_frequency", num_samples=3, temperature=1e-7)
    for answer, greedy in zip(answers, ask(lab, reads[:2]), strict=True):
        assert answer.text == greedy.text
        assert answer.confidence.value == 1


def test_agreement_asks_about_each_position_alone(lab, reads):
    answers = ask(lab, reads, confidence="agreement")
    for acts, answer in zip(reads, answers, strict=True):
        alone = [ask(lab, acts.at([position])).text for position in acts.positions]
        assert answer.text == ask(lab, acts).text
        assert answer.confidence.n == len(acts)
        assert answer.confidence.value == pytest.approx(
            sum(text == answer.text for text in alone) / len(alone)
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"confidence": "self_report"}, GenerationError, "log_probability, mode_frequency"),
        ({"confidence": "forced_choice"}, GenerationError, "choose"),
        ({"confidence": "mode_frequency", "num_samples": 1}, GenerationError, "two or more"),
        ({"confidence": "mode_frequency", "do_sample": False}, GenerationError, "do_sample"),
        ({"confidence": "mode_frequency", "temperature": 0}, GenerationError, "temperature 0"),
    ],
)
def test_confidences_that_cannot_be_had(lab, reads, options, error, message):
    with pytest.raises(error, match=message):
        ask(lab, reads[0], **options)


def test_one_position_agrees_with_nothing(lab, reads):
    with pytest.raises(PositionError, match="two or more"):
        ask(lab, reads[0][-1:], confidence="agreement")


def test_an_answer_says_how_sure_it_is(lab, reads):
    answer = ask(lab, reads[0], confidence="log_probability")
    assert str(answer).endswith(f"[{answer.confidence}]")
    assert "not calibrated" in answer._repr_html_()
    assert json.loads(json.dumps(answer.to_dict()))["confidence"]["kind"] == "log_probability"


def test_a_calibrated_oracle_says_so_and_keeps_it_when_saved(lab, reads, tmp_path):
    measured = ask(lab, reads[0], confidence="log_probability").confidence
    calibration = Calibration(
        kind="log_probability", settings=measured.settings, threshold=1.0, **MADE, **LOSSES
    )
    oracle = lab.oracle.with_calibration(calibration)
    answer = oracle.ask(QUESTION, reads[0], max_new_tokens=12, confidence="log_probability")
    assert answer.confidence.calibrated
    assert answer.confidence.abstain
    assert answer.confidence.raw == pytest.approx(measured.raw, abs=1e-5)
    assert answer.confidence.value == pytest.approx(calibration.apply(measured).value, abs=1e-5)
    assert lab.oracle.contract.calibrations == ()

    oracle.save_pretrained(tmp_path / "oracle")
    loaded = Oracle.from_pretrained(tmp_path / "oracle", model=lab.model)
    try:
        assert loaded.contract.calibrations == (calibration,)
    finally:
        lab.model.delete_adapter(loaded.adapter)


def test_a_calibration_of_one_window_is_not_used_for_another(lab, reads):
    def settings(acts, **options):
        several = len(acts) > 1 and options.get("window") != 1
        kinds = ("log_probability", "agreement") if several else ("log_probability",)
        found = [ask(lab, acts, confidence=kind, **options).confidence for kind in kinds]
        found.append(lab.oracle.choose(QUESTION, acts, ["a", "b"], **options).confidence)
        (positions,) = {confidence.settings["positions"] for confidence in found}
        return positions

    assert settings(reads[0]) == settings(reads[0], window="all") == "span"
    assert settings(reads[0], window=4) == 4
    assert settings(reads[0][-1]) == settings(reads[0], window=1) == 1


# Forced choice


def test_choices_in_a_batch_are_those_one_at_a_time(lab, reads):
    words = [f"The {organism.secret}." for organism in lab.organisms.values()]
    together = lab.oracle.choose(QUESTION, reads, words, max_batch=7)
    for acts, choice in zip(reads, together, strict=True):
        alone = lab.oracle.choose(QUESTION, acts, words)
        assert choice.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
        assert choice.confidence.value == pytest.approx(max(choice.probabilities.values()))
        assert not choice.controls
        assert choice.supported is None


def test_each_question_can_have_its_own_choices(lab, reads):
    lists = [["The lion.", "The boat."], ["The pine.", "The opal.", "The pie."]]
    first, second = lab.oracle.choose(QUESTION, reads[:2], lists)
    assert list(first.probabilities) == lists[0]
    assert second.log_probs["The pie."] == pytest.approx(
        lab.oracle.score(QUESTION, reads[1], "The pie."), abs=1e-4
    )


def test_the_base_chooses_from_the_same_tokens(lab, reads):
    words = ["The lion.", "The boat.", "The bench."]
    for acts, choice in zip(
        reads, lab.oracle.choose(QUESTION, reads, words, controls=["base", "zero"]), strict=True
    ):
        base = lab.model.activations(list(acts.context_ids), layers=acts.layers[0])
        expected = lab.oracle.choose(QUESTION, base.at(list(acts.positions)), words)
        control = choice.controls["base"]
        assert control.log_probs == pytest.approx(expected.log_probs, abs=1e-3)
        assert ("base" in choice.unsupported_by) == (control.text == choice.text)
        assert json.dumps(choice.to_dict())
        assert "base" in choice._repr_html_()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([["a", "b"]], "1 lists of choices for 2"),
        ([["a", "b"], ["a"]], "two or more"),
        ([["a", "b"], ["a", "a"]], "two or more"),
        ([["a", "b"], "ab"], "two or more"),
        ("ab", "two or more"),
    ],
)
def test_lists_of_choices_that_do_not_fit(lab, reads, choices, message):
    with pytest.raises(GenerationError, match=message):
        lab.oracle.choose(QUESTION, reads[:2], choices)
