"""Confidences of an evaluation: what is right, calibration on other units, abstaining."""

import dataclasses
import json
import random

import eval_results as made
import numpy as np
import pytest
import sklearn.metrics
import tiny_items
import tiny_suite

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals import OracleArm, run_suite
from aotoolkit.evals.confidences import Confidences, confidences_of
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import Confidence, cross_calibrated, group_folds, mode_frequency

UNITS = {"taboo": "organism", "trait": "organism", "gist": "text"}
RIGHT, WRONG = {"lamp": -0.1, "salt": -3.0}, {"lamp": -3.0, "salt": -0.1}


def said(kind: str, value: float, **changes):
    fields = {"kind": kind, "value": value, "raw": value, "n": 4, "calibrated": False}
    return {"confidence": [fields | changes]}


def judged(number: int, value: float, right: bool, *, kind: str = "log_probability", **changes):
    """An answer of one of 20 organisms, whose confidence is about its text."""
    text = "The lamp." if right else "The salt."
    return made.record(
        number,
        unit=f"organism {number % 20}",
        text=text,
        correct=float(right),
        details=said(kind, value),
        **changes,
    )


def fake(count: int, share, *, seed: int = 0):
    """Answers with random confidences, of which `share(confidence)` are right."""
    rng = random.Random(seed)
    values = [rng.random() for _ in range(count)]
    return [judged(n, value, rng.random() < share(value)) for n, value in enumerate(values)]


def only(found: Confidences):
    (row,) = found.together
    return row


def test_a_calibrated_fake_has_no_error_and_an_overconfident_one_has():
    calibrated = only(confidences_of(fake(4000, lambda value: value), UNITS))
    assert calibrated.measured.ece < 0.03
    sure = only(confidences_of(fake(4000, lambda value: value / 2), UNITS))
    assert sure.measured.ece > 0.2
    # What is fitted on some organisms takes the error of others away.
    assert sure.calibrated is not None
    assert sure.calibrated.ece < 0.05
    assert sure.calibrated.brier < sure.measured.brier


def test_the_figures_are_those_of_scikit_learn():
    records = fake(300, lambda value: value**2)
    measured = only(confidences_of(records, UNITS)).measured
    values = [record.details["confidence"][0]["value"] for record in records]
    right = [record.correct for record in records]
    assert measured.brier == pytest.approx(sklearn.metrics.brier_score_loss(right, values))
    assert measured.auroc == pytest.approx(sklearn.metrics.roc_auc_score(right, values))
    index = np.minimum((np.array(values) * 10).astype(int), 9)
    gaps = [
        abs(sum(v - r for v, r, i in zip(values, right, index, strict=True) if i == bin))
        for bin in range(10)
    ]
    assert measured.ece == pytest.approx(sum(gaps) / len(values))
    assert (measured.num_items, measured.n, measured.unit) == (300, 20, "organism")


def test_a_calibration_never_sees_the_unit_that_it_is_shown_for():
    # One organism is always wrong, and all others as sure and right. Calibrated by those of other
    # parts it stays sure, since they know nothing of it; all the others learn of it.
    groups = [n % 20 for n in range(400)]
    mine = Confidence(kind="log_probability", value=0.9, raw=0.9, n=4)
    values = np.array(cross_calibrated([mine] * 400, [g != 0 for g in groups], groups))
    part = group_folds(groups) == 0
    assert {g for g, own in zip(groups, part, strict=True) if own} == {0, 5, 10, 15}
    assert values[part] == pytest.approx(1, abs=0.01)
    assert values[~part] == pytest.approx(15 / 16, abs=0.01)


def test_a_forced_choice_is_judged_by_the_choice_and_a_text_by_the_text():
    # The text is right and the choice wrong, and the other way round.
    details = said("forced_choice", 0.8)["confidence"] + said("log_probability", 0.6)["confidence"]
    records = [
        made.record(0, text="The lamp.", scores=WRONG, details={"confidence": details}),
        made.record(
            1, text="The salt.", scores=RIGHT, correct=0.0, details={"confidence": details}
        ),
        made.record(2, text="The lamp.", scores=RIGHT, details={"confidence": details}),
        made.record(3, text="lamp or salt", scores=RIGHT, details={"confidence": details}),
    ]
    rows = {row.kind: row for row in confidences_of(records, UNITS).together}
    assert rows["forced choice"].measured.bins[0].accuracy.mean == 3 / 4
    assert rows["log probability"].measured.bins[0].accuracy.mean == 2 / 4  # both is no answer


def test_the_threshold_is_chosen_on_other_units_than_those_it_is_shown_for():
    row = only(confidences_of(fake(2000, lambda value: value), UNITS, precision=0.9))
    assert row.abstention is not None
    assert row.abstention.reached is not None
    assert row.abstention.reached.mean == pytest.approx(0.9, abs=0.04)
    assert row.abstention.threshold == pytest.approx(0.8, abs=0.07)
    assert row.abstention.coverage == pytest.approx(0.2, abs=0.06)
    # Confidence that says nothing reaches nothing.
    row = only(confidences_of(fake(2000, lambda _: 0.3), UNITS, precision=0.9))
    assert row.abstention is not None
    assert row.abstention.threshold is None
    assert row.abstention.reached is None
    assert row.abstention.coverage == 0


def test_what_is_left_out_is_counted():
    records = [
        judged(0, 0.5, True),
        made.record(1, kind="control", details=said("log_probability", 0.5)),
        made.record(2, task="gist", choices=(), correct=0.5, details={"confidence": 0.5}),
        made.record(3, details={"confidence": 7.0}),
        made.record(4, details={"confidence": "high"}),
        made.record(5),
    ]
    found = confidences_of(records, UNITS)
    assert found.num_outside == 1
    assert found.partly_right == ("gist",)
    assert only(found).measured.num_items == 1
    assert only(found).calibrated is None  # of one organism
    assert only(found).abstention is None
    assert confidences_of([], UNITS) == Confidences()


def test_what_a_contract_calibrated_is_not_calibrated_again():
    records = [
        dataclasses.replace(record, details=said("log_probability", 0.5, calibrated=True, raw=0.1))
        for record in fake(100, lambda _: 0.5)
    ]
    row = only(confidences_of(records, UNITS))
    assert row.kind == "log probability, calibrated"
    assert row.calibrated is None
    assert row.abstention is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def oracle(model) -> Oracle:
    return tiny_items.oracle(model)


def test_the_oracle_arm_says_how_sure_it_is(model, oracle):
    for item, answer in zip(
        tiny_items.items(model, 2),
        OracleArm(oracle, max_new_tokens=5).answer(tiny_items.items(model, 2)),
        strict=True,
    ):
        (sure,) = answer.details["confidence"]
        powers = np.exp(list(answer.scores.values()))
        assert sure["kind"] == "forced_choice"
        assert sure["value"] == pytest.approx(powers.max() / powers.sum(), rel=1e-5)
        assert sure["n"] == len(item.choices)
    free = tiny_items.items(model, 2, choices=(), answers=("water",))
    for answer in OracleArm(oracle, max_new_tokens=5).answer(free):
        (sure,) = answer.details["confidence"]
        assert sure["kind"] == "log_probability"
        assert sure["value"] == pytest.approx(np.exp(answer.details["log_prob"]), rel=1e-5)


def test_a_mode_is_the_answer_and_does_not_depend_on_the_items_beside_it(model, oracle):
    arm = OracleArm(oracle, max_new_tokens=3, confidence="mode_frequency", num_samples=6)
    items = tiny_items.items(model, 3)
    together = arm.answer(items)
    alone = [arm.answer([item])[0] for item in reversed(items)]
    for answer, single in zip(together, reversed(alone), strict=True):
        forced, mode = answer.details["confidence"]
        # Draws are each item's own; a probability is rounded as its batch is run.
        own_forced, own_mode = single.details["confidence"]
        assert (answer.text, mode) == (single.text, own_mode)
        assert forced["value"] == pytest.approx(own_forced["value"], rel=1e-5)
        assert (forced["kind"], mode["kind"]) == ("forced_choice", "mode_frequency")
        assert mode["n"] == 6
        assert mode["value"] * 6 == pytest.approx(round(mode["value"] * 6))
        assert mode["value"] >= 1 / 6
    assert mode_frequency(["a", "a", "b"])[1].value == pytest.approx(2 / 3)


def test_agreement_needs_several_positions(model, oracle):
    arm = OracleArm(oracle, max_new_tokens=3, confidence="agreement")
    (answer,) = arm.answer(tiny_items.items(model, 1))
    kinds = {one["kind"]: one for one in answer.details["confidence"]}
    assert kinds["agreement"]["n"] == 3
    with pytest.raises(ArmNotApplicableError, match="two or more"):
        arm.answer(tiny_items.items(model, 1, positions=(-1,)))


def test_a_run_keeps_them_and_refuses_a_precision_that_is_none(tmp_path, model):
    class Sure(tiny_suite.Told):
        def answer(self, items):
            return [
                dataclasses.replace(answer, details=said("log_probability", 0.9))
                for answer in super().answer(items)
            ]

    suite = tiny_suite.suite(Sure())
    result = run_suite(suite, model, out=tmp_path, precision=0.7, progress=False)
    kept = json.loads((tmp_path / "table.json").read_text())["confidence"]
    assert [row["task"] for row in kept] == ["planted", None]
    assert kept[0]["measured"]["ece"] == pytest.approx(0.1)
    assert kept[0]["abstention"] is None  # all answers are right
    assert only(result.table.confidences).measured.bins[0].num_items == 18
    with pytest.raises(EvalError, match="precision is 2"):
        run_suite(suite, model, precision=2, progress=False)


def test_where_the_task_counts_free_answers_its_score_decides():
    """A spelling that is among no candidates is right if the task says so."""
    changes = {"secondary": {"forced choice": 0.0}, "choices": ("water", "salt")}
    records = [
        dataclasses.replace(
            judged(number, 0.9, right=True), text="aqua", answers=("water",), **changes
        )
        for number in range(6)
    ]
    assert only(confidences_of(records, UNITS)).measured.brier == pytest.approx(0.01)
    without = [dataclasses.replace(record, secondary={}) for record in records]
    assert only(confidences_of(without, UNITS)).measured.brier == pytest.approx(0.81)
