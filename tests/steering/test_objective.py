"""What is minimised: with random offsets, and with oracles that take turns."""

import dataclasses
import threading

import pytest
import torch
from tiny_steering import PAIRS, PROMPTS, objective_of, target_and_oracle

from aotoolkit.errors import (
    IncompatibleActivationsError,
    LayerError,
    RunMismatchError,
    SteeringError,
)
from aotoolkit.oracle import Oracle
from aotoolkit.steering import estimate, steer
from aotoolkit.steering.objective import OraclesInTurn
from aotoolkit.steering.steering import new_adapter, only_trained

QUICK = {
    "layers": 2,
    "steps": 4,
    "lr": 2e-2,
    "batch_size": 4,
    "rank": 2,
    "alpha": 2,
    "eval_every": 2,
    "max_new_tokens": 3,
    "progress": False,
}


def two_oracles():
    """A target, and oracles of both dialects on its base."""
    model, first = target_and_oracle()
    _, made = target_and_oracle(dialect="latentqa")
    return model, first, Oracle(model, "oracle", made.contract)


def test_offsets_are_of_the_length_that_was_asked_for_and_drawn_for_each_step():
    model, oracle = target_and_oracle()
    objective = objective_of(model, oracle)
    objective.noise = 0.5
    reads = {2: torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(0)) * 7}
    moved, again, other = (objective._moved(reads, name)[2] for name in ("0", "0", "1"))
    assert torch.equal(moved, again)
    assert not torch.equal(moved, other)
    shares = (moved - reads[2]).norm(dim=-1) / reads[2].norm(dim=-1)
    # The mean of 120 lengths of 32 normal numbers each.
    assert shares.mean() == pytest.approx(0.5, abs=0.03)


def test_what_an_oracle_recalls_when_asked_is_not_followed(lab):
    asked = lab.oracle
    trained = asked.transform.as_trained
    assert (asked.transform.kind, trained.kind) == ("mapped_recalled", "mapped_pooled")
    contract = dataclasses.replace(
        asked.contract, transform=trained.kind, transform_digest=trained.digest
    )
    pooled = Oracle(lab.model, asked.adapter, contract, transform=trained)
    losses = []
    for oracle in (asked, pooled):
        objective = objective_of(lab.model, oracle, method="vector")
        objective.adapter = None
        objective.added = {2: torch.zeros(lab.model.d_model)}
        losses.append(objective.evaluate())
    assert losses[0] == losses[1]
    acts = lab.model.activations(PROMPTS[0], layers=[2])
    scores = [oracle.score(PAIRS[0][0], acts, PAIRS[0][1]) for oracle in (asked, pooled)]
    assert scores[0] != scores[1]


def test_what_is_minimised_is_the_loss_at_offset_vectors():
    """Loss, gradient and curve differ from those without; the curve is the same at each call."""
    model, oracle = target_and_oracle()
    found = {}
    for noise in (0.0, 0.5):
        objective = objective_of(model, oracle)
        objective.noise = noise
        with new_adapter(model, "steered", num_blocks=3, rank=2, alpha=2, seed=0) as parameters:
            with only_trained({model}, parameters):
                loss = objective.step(0)
                gradients = torch.cat(
                    [p.grad.flatten() for p in parameters if p.grad is not None]
                ).clone()
            found[noise] = (loss, gradients, objective.evaluate())
            assert objective.evaluate() == found[noise][2]
        model.delete_adapter("steered")
    assert found[0.0][0] != found[0.5][0]
    assert not torch.allclose(found[0.0][1], found[0.5][1])
    assert found[0.0][2] != found[0.5][2]


def test_a_run_with_offsets_is_repeated_by_its_seed_and_no_other_goes_on(tmp_path):
    runs = []
    for _ in range(2):
        model, oracle = target_and_oracle()
        runs.append(steer(model, oracle, PAIRS, PROMPTS, noise=0.3, **QUICK).losses)
    assert runs[0] == runs[1]
    model, oracle = target_and_oracle()
    steer(model, oracle, PAIRS, PROMPTS, noise=0.3, folder=tmp_path, **QUICK).remove()
    with pytest.raises(RunMismatchError, match="noise"):
        steer(model, oracle, PAIRS, PROMPTS, folder=tmp_path, **QUICK)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_no_share_is_refused(noise):
    model, oracle = target_and_oracle()
    with pytest.raises(SteeringError, match="noise"):
        steer(model, oracle, PAIRS, PROMPTS, noise=noise, **QUICK)
    assert model.adapter_names == ("oracle",)


def test_oracles_take_turns():
    model, first, second = two_oracles()
    turns = OraclesInTurn([objective_of(model, one) for one in (first, second)])
    asked = []
    for name, one in zip("ab", turns.objectives, strict=True):
        one.step = lambda number, name=name: asked.append((name, number)) or 0.0
    for number in range(4):
        turns.step(number)
    assert asked == [("a", 0), ("b", 1), ("a", 2), ("b", 3)]


def test_each_of_several_oracles_is_told_more_and_more_what_is_wanted():
    model, first, second = two_oracles()
    both = steer(model, [first, second], PAIRS, PROMPTS, **(QUICK | {"steps": 12}))
    starts, ends = [], []
    for one in (first, second):
        objective = objective_of(model, one, window=None)
        objective.adapter = None
        starts.append(objective.evaluate())
        objective.adapter = both.adapter
        ends.append(objective.evaluate())
    assert all(end < start for start, end in zip(starts, ends, strict=True))
    assert both.losses[0].loss == pytest.approx(sum(starts) / 2)
    assert min(point.loss for point in both.losses) == pytest.approx(sum(ends) / 2)


def test_a_list_of_one_oracle_is_that_oracle():
    alone, listed = (
        steer(model, oracle if bare else [oracle], PAIRS, PROMPTS, **QUICK).losses
        for bare, (model, oracle) in ((True, target_and_oracle()), (False, target_and_oracle()))
    )
    assert alone == listed


def test_no_oracle_and_a_layer_that_one_of_them_cannot_read_are_refused():
    model, first, second = two_oracles()
    with pytest.raises(SteeringError, match="no oracle"):
        steer(model, [], PAIRS, PROMPTS, **QUICK)
    with pytest.raises(LayerError):
        steer(model, [first, second], PAIRS, PROMPTS, **(QUICK | {"layers": 9}))
    assert model.adapter_names == ("oracle",)


def test_memory_of_several_is_that_of_the_one_that_keeps_most():
    model, first, second = two_oracles()
    alone = [estimate(model, one, PAIRS, PROMPTS, layers=2, rank=2) for one in (first, second)]
    both = estimate(model, [first, second], PAIRS, PROMPTS, layers=2, rank=2)
    assert both.activation_bytes == max(one.activation_bytes for one in alone)
    assert both.base_bytes == alone[0].base_bytes


@pytest.mark.parametrize("several", [False, True])
def test_a_run_with_offsets_goes_on_in_the_middle(tmp_path, several):
    options = QUICK | {"noise": 0.5, "eval_every": 1}
    model, first, second = two_oracles()
    oracles = [first, second] if several else first
    whole = steer(model, oracles, PAIRS, PROMPTS, **options)
    whole.remove()
    stop = threading.Event()

    def halfway(point):
        if point.step == 3:
            stop.set()

    part = steer(
        model, oracles, PAIRS, PROMPTS, **options, folder=tmp_path, stop=stop, on_point=halfway
    )
    assert part.stopped
    part.remove()
    again = steer(model, oracles, PAIRS, PROMPTS, **options, folder=tmp_path)
    assert again.losses == whole.losses
    again.remove()
    if several:
        with pytest.raises(RunMismatchError, match="contract"):
            steer(model, [second, first], PAIRS, PROMPTS, **options, folder=tmp_path)


def test_offsets_of_half_precision_are_finite():
    model, oracle = target_and_oracle()
    objective = objective_of(model, oracle)
    objective.noise = 2.0
    read = torch.full((1, 3, 32), 8_000.0, dtype=torch.float16)
    moved = objective._moved({2: read}, "0")[2]
    assert moved.dtype == torch.float16
    assert bool(torch.isfinite(moved).all())


def test_an_oracle_of_another_base_gets_no_estimate():
    model, _ = target_and_oracle()
    _, other = target_and_oracle(seed=7)
    with pytest.raises(IncompatibleActivationsError):
        estimate(model, other, PAIRS, PROMPTS, layers=2, rank=2)
    assert model.adapter_names == ("oracle",)
