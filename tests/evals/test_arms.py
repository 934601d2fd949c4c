"""The oracle and its controls as arms."""

import dataclasses

import pytest
import tiny_items
import torch

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals import ControlArm, OracleArm, read_items
from aotoolkit.evals.baselines import UntrainedOracle
from aotoolkit.oracle import Oracle, VectorTransform


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def oracle(model) -> Oracle:
    return tiny_items.oracle(model)


def centred(oracle: Oracle) -> Oracle:
    """The oracle with a transform that takes a mean away."""
    mean = torch.linspace(-1, 1, oracle.model.d_model)[None]
    contract = dataclasses.replace(oracle.contract, transform="centred_by_layer")
    transform = VectorTransform("centred_by_layer", layers=(2,), mean=mean)
    return Oracle(oracle.model, oracle.adapter, contract, transform=transform)


def test_the_oracle_arm_asks_what_the_oracle_is_asked(model, oracle):
    items = tiny_items.items(model, 3, reply="The {choice}.")
    answers = OracleArm(oracle, max_new_tokens=5).answer(items)
    for item, answer in zip(items, answers, strict=True):
        alone = oracle.ask(item.question, item.activations, controls=False, max_new_tokens=5)
        assert answer.text == alone.text
        chosen = oracle.choose(
            item.question, item.activations, [f"The {choice}." for choice in item.choices]
        )
        assert answer.scores == pytest.approx(
            {c: chosen.log_probs[f"The {c}."] for c in item.choices}, abs=1e-4
        )
    assert OracleArm(oracle).answer([]) == []


@pytest.mark.parametrize("make", [lambda o: o, centred], ids=["plain", "centred"])
@pytest.mark.parametrize("control", ["no_activation", "zero", "base"])
def test_a_control_arm_is_the_oracles_own_control(model, oracle, control, make):
    oracle = make(oracle)
    items = tiny_items.items(model, 3)
    answers = ControlArm(oracle, control, max_new_tokens=5).answer(items)
    for item, answer in zip(items, answers, strict=True):
        alone = oracle.ask(item.question, item.activations, controls=(control,), max_new_tokens=5)
        assert answer.text == alone.controls[control]
        chosen = oracle.choose(
            item.question, item.activations, item.choices, controls=(control,)
        ).controls[control]
        assert answer.scores == pytest.approx(dict(chosen.log_probs), abs=1e-4)


@pytest.mark.parametrize("kind", ["oracle", "untrained", "no_activation", "zero", "base"])
def test_what_a_contract_recommends_does_not_change_an_evaluation(model, oracle, kind):
    def arm(asked: Oracle, **options):
        if kind == "oracle":
            return OracleArm(asked, max_new_tokens=5, **options)
        if kind == "untrained":
            return UntrainedOracle(asked, max_new_tokens=5, **options)
        return ControlArm(asked, kind, max_new_tokens=5, **options)

    extra = {
        "recommended_layer": 2,
        "recommended_temperature": 50.0,
        "recommended_coefficient": 3.0,
    }
    contract = dataclasses.replace(oracle.contract, extra=extra)
    swept = Oracle(model, oracle.adapter, contract)
    items = tiny_items.items(model, 3)
    plain = arm(oracle).answer(items)
    assert arm(swept).answer(items) == plain
    # Stated options are taken, and None asks for what is recommended.
    hot = arm(oracle, temperature=50.0, coefficient=3.0).answer(items)
    assert [a.text for a in hot] != [a.text for a in plain]
    greedy = arm(swept, coefficient=None).answer(items)
    assert [a.scores for a in greedy] == [a.scores for a in hot]


def test_items_without_placeholders_are_scored_together(model, oracle, monkeypatch):
    items = tiny_items.items(model, 3)
    free = tiny_items.spec(3, choices=())
    items += read_items(model, [free], layers=2)
    choose, called = Oracle.choose, []

    def counting(self, questions, *args, **kwargs):
        called.append(len(questions))
        return choose(self, questions, *args, **kwargs)

    monkeypatch.setattr(Oracle, "choose", counting)
    answers = ControlArm(oracle, "no_activation", max_new_tokens=3).answer(items)
    assert called == [3]
    assert [bool(answer.scores) for answer in answers] == [True, True, True, False]


def test_sampled_answers_are_seeded_by_item(model, oracle):
    items = tiny_items.items(model, 2, choices=())
    arm = OracleArm(oracle, max_new_tokens=6, temperature=2.0)
    before = torch.random.get_rng_state()
    first, again = ([answer.text for answer in arm.answer(items)] for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.random.get_rng_state())
    assert [answer.text for answer in arm.answer(items[1:])] == first[1:]
    assert first != [answer.text for answer in OracleArm(oracle, max_new_tokens=6).answer(items)]


def test_random_vectors_differ_by_item_and_not_by_company(model, oracle):
    items = tiny_items.items(model, 3)
    arm = ControlArm(centred(oracle), "random", max_new_tokens=4)
    together = arm.answer(items)
    alone = [arm.answer([item])[0] for item in items]
    for a, b in zip(together, alone, strict=True):
        assert a.text == b.text
        assert a.scores == pytest.approx(b.scores, abs=1e-4)
    made = [arm._made(item).vectors for item in items]
    assert not torch.allclose(made[0], made[1])
    transformed = centred(oracle).transform.apply(
        items[0].activations.vectors, layers=(2,), token_ids=items[0].activations.token_ids
    )
    torch.testing.assert_close(made[0].norm(dim=-1), transformed.norm(dim=-1))


def test_shuffling_keeps_the_vectors_and_needs_two(model, oracle):
    arm = ControlArm(oracle, "shuffled", max_new_tokens=2)
    (item,) = tiny_items.items(model, 1)
    made, given = arm._made(item).vectors[0], item.activations.vectors[0]
    assert not any(torch.equal(a, b) for a, b in zip(made, given, strict=True))
    assert {tuple(v.tolist()) for v in made} == {tuple(v.tolist()) for v in given}
    with pytest.raises(ArmNotApplicableError, match="one position"):
        arm.answer(tiny_items.items(model, 1, positions=(-1,)))


def test_another_units_evidence_has_other_answers(model, oracle):
    items = tiny_items.items(model, 4)
    answers = ControlArm(oracle, "other_unit", max_new_tokens=3).answer(items)
    candidates = {
        item.id: [
            OracleArm(oracle, max_new_tokens=3)
            .answer([dataclasses.replace(item, activations=other.activations)])[0]
            .scores
            for other in items
            if other.unit != item.unit
        ]
        for item in items
    }
    for answer in answers:
        assert any(
            answer.scores == pytest.approx(other, abs=1e-4) for other in candidates[answer.item]
        )
    with pytest.raises(ArmNotApplicableError, match="all items"):
        ControlArm(oracle, "other_unit").answer(items[:1])


def test_what_cannot_be_asked_is_said(model, oracle):
    with pytest.raises(EvalError, match="no_activation"):
        ControlArm(oracle, "nothing")  # pyright: ignore[reportArgumentType]
    of_the_base = tiny_items.items(model, 1, adapter=None)
    with pytest.raises(ArmNotApplicableError, match="base_prompt"):
        ControlArm(oracle, "base").answer(of_the_base)
