"""Gradients through the oracle against finite differences, in float64.

GPT-2 and GPT-NeoX keep float64 throughout; the RMSNorm of others rounds to float32.
"""

import pytest
import torch
from tiny_steering import PAIRS, PROMPTS, objective_of, target_and_oracle

from aotoolkit.steering.behaviour import Behaviour
from aotoolkit.steering.steering import new_adapter, only_trained

FORMULAS = {
    "add_norm_matched": {"formula": "add_norm_matched", "coefficient": 1.5},
    "replace": {"formula": "replace"},
    "add_rescaled": {"formula": "add_rescaled", "coefficient": 2.0, "final_scale": 1.3},
}


def gradients(objective, parameters):
    for parameter in parameters:
        parameter.grad = None
    with only_trained([objective.model], parameters):
        objective.backward(objective.evaluated)
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    assert all(bool(torch.isfinite(one).all()) for one in found)
    return found


def randomise(parameters):
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return [torch.randn(p.shape, generator=generator).to(p) for p in parameters]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX"])
def test_gradients_are_those_of_finite_differences(architecture, formula, checkpointed):
    model, oracle = target_and_oracle(architecture, dtype=torch.float64, **FORMULAS[formula])
    objective = objective_of(model, oracle, checkpointed=checkpointed)
    with new_adapter(model, "steered", num_blocks=3, rank=2, alpha=2, seed=0) as parameters:
        directions = randomise(parameters)
        found = gradients(objective, parameters)
        expected = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
        step, losses = 1e-5, []
        for sign in (1, -1):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data += sign * step * direction
            losses.append(objective.evaluate())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data -= sign * step * direction
    measured = (losses[0] - losses[1]) / (2 * step)
    assert abs(expected) > 1e-4
    assert expected == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize("formula", FORMULAS)
def test_vectors_have_the_gradients_of_finite_differences(formula):
    model, oracle = target_and_oracle("GPT2", dtype=torch.float64, **FORMULAS[formula])
    objective = objective_of(model, oracle, method="vector", layers=(1, 2))
    objective.adapter = None
    added = [torch.nn.Parameter(torch.zeros(32, dtype=torch.float64)) for _ in range(2)]
    objective.added = dict(zip((1, 2), added, strict=True))
    directions = randomise(added)
    found = gradients(objective, added)
    expected = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
    losses = []
    for sign in (1, -2):
        for vector, direction in zip(added, directions, strict=True):
            vector.data += sign * 1e-5 * direction
        losses.append(objective.evaluate())
    assert expected == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("dialect", ["activation_oracle", "latentqa"])
@pytest.mark.parametrize("architecture", ["Qwen3", "Gemma2", "GPT2"])
def test_checkpointing_changes_no_gradient(architecture, dialect):
    model, oracle = target_and_oracle(architecture, dialect=dialect)
    plain, checkpointed = (
        objective_of(model, oracle, checkpointed=checkpointed) for checkpointed in (False, True)
    )
    with new_adapter(model, "steered", num_blocks=3, rank=2, alpha=2, seed=0) as parameters:
        randomise(parameters)
        for ours, theirs in zip(
            gradients(plain, parameters), gradients(checkpointed, parameters), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_layerwise_loss_moves_the_blocks_since_the_layer_before_alone():
    model, oracle = target_and_oracle("GPT2", dtype=torch.float64)
    with new_adapter(model, "steered", num_blocks=3, rank=2, alpha=2, seed=0) as parameters:
        randomise(parameters)
        names = [n for n, _ in model.hf_model.named_parameters() if ".steered." in n]
        both = gradients(objective_of(model, oracle, method="layerwise", layers=(1, 2)), parameters)
        first = gradients(objective_of(model, oracle, layers=(1,)), parameters)
        second = gradients(objective_of(model, oracle, layers=(2,)), parameters)
        for name, ours, one, two in zip(names, both, first, second, strict=True):
            # The mean is over twice as many answers.
            expected = two if ".h.2." in name else one
            torch.testing.assert_close(ours, expected / 2)


def test_pieces_and_padding_change_nothing():
    model, oracle = target_and_oracle("GPT2", dtype=torch.float64)
    with new_adapter(model, "steered", num_blocks=3, rank=2, alpha=2, seed=0) as parameters:
        randomise(parameters)
        whole, cut = objective_of(model, oracle), objective_of(model, oracle)
        whole.loss.tokens_per_pass, cut.loss.tokens_per_pass = 10_000, 1
        for ours, theirs in zip(
            gradients(whole, parameters), gradients(cut, parameters), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


def test_the_loss_is_what_asking_says():
    """The oracle's own log-probability of the answers, from activations read as anyone would."""
    model, oracle = target_and_oracle()
    objective = objective_of(model, oracle)
    objective.adapter = None
    log_probs, tokens = 0.0, 0
    for prompt in PROMPTS:
        acts = model.activations(prompt, layers=2)[-4:]
        for question, answer in PAIRS:
            log_probs += oracle.score(question, acts, answer)
            tokens += objective.loss.item(
                Behaviour.of([(question, answer)]).pairs[0],
                layers=(2,),
                row=0,
                positions=acts.positions,
                context_ids=acts.context_ids,
            ).num_label_tokens
    assert objective.evaluate() == pytest.approx(-log_probs / tokens, rel=1e-4)
