"""What steering does to a target, and what it leaves alone."""

import threading

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tiny_steering import DIALECTS, PAIRS, PROMPTS, objective_of, target_and_oracle, weights

from aotoolkit.errors import (
    AdapterLoadError,
    ContextLengthError,
    CorruptedFileError,
    IncompatibleActivationsError,
    LayerError,
    RunMismatchError,
    SteeringError,
    UnknownAdapterError,
)
from aotoolkit.oracle import Oracle
from aotoolkit.steering import (
    Behaviour,
    QuestionAnswer,
    SteeringVector,
    describe_behaviour,
    estimate,
    steer,
)
from aotoolkit.steering import objective as objective_module
from aotoolkit.steering.baselines import fine_tune, mean_difference, shuffled_answers, text_loss
from aotoolkit.steering.objective import OraclesInTurn
from aotoolkit.tracing import TracedModel

QUICK = {
    "steps": 6,
    "lr": 2e-2,
    "batch_size": 4,
    "rank": 2,
    "alpha": 2,
    "eval_every": 2,
    "max_new_tokens": 3,
    "progress": False,
}


def logits(model, adapter=None):
    ids = model.encode(PROMPTS[1]).token_ids
    with model.inference(adapter):
        return model.hf_model(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("architecture", ["Qwen3", "GPT2", "Gemma2", "Qwen3Moe"])
def test_the_oracle_is_told_more_and_more_what_is_wanted(architecture, dialect):
    model, oracle = target_and_oracle(architecture, dialect=dialect)
    result = steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    assert result.losses[-1].loss < result.losses[0].loss
    assert [point.step for point in result.losses] == [0, 2, 4, 6]
    assert len(result.before) == len(result.after) == 2


@pytest.mark.parametrize("method", ["single_layer", "layerwise", "vector"])
def test_base_and_oracle_stay_bit_for_bit(method):
    model, oracle = target_and_oracle()
    model.hf_model.train()
    before, digests = weights(model), (model.base_digest, model.adapter_digest("oracle"))
    flags = {n: w.requires_grad for n, w in model.hf_model.named_parameters()}
    alone = logits(model)
    layers = (1, 2) if method == "layerwise" else 2
    result = steer(model, oracle, PAIRS, PROMPTS, method=method, layers=layers, **QUICK)
    after = weights(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert (model.base_digest, model.adapter_digest("oracle")) == digests
    now = {n: w.requires_grad for n, w in model.hf_model.named_parameters()}
    assert {name: now[name] for name in flags} == flags
    assert not any(flag for name, flag in now.items() if name not in flags)
    assert all(w.grad is None for w in model.hf_model.parameters())
    assert model.hf_model.training, "the caller's mode"
    assert torch.equal(logits(model), alone)
    with result.live() as adapter:
        assert not torch.equal(logits(model, adapter), alone)
    assert torch.equal(logits(model), alone)


def test_only_blocks_up_to_the_layer_are_adapted():
    model, oracle = target_and_oracle()
    steer(model, oracle, PAIRS, PROMPTS, layers=1, **QUICK)
    names = [n for n, _ in model.hf_model.named_parameters() if ".steered." in n]
    assert {name.split("layers.")[1][0] for name in names} == {"0", "1"}
    assert not any(".oracle" in name for name in names), "an adapter of the oracle's adapter"


def test_two_copies_of_the_base_give_what_one_gives():
    shared, oracle = target_and_oracle()
    apart, _ = target_and_oracle()
    one = steer(shared, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    two = steer(apart, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    assert one.losses == two.losses


def test_the_adapter_is_one_that_peft_loads(tmp_path):
    model, oracle = target_and_oracle()
    result = steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    with result.live(0.5) as adapter:
        half = logits(model, adapter)
    for scale, expected in ((1.0, logits(model, "steered")), (0.5, half)):
        folder = result.save(tmp_path / "adapter", scale=scale)
        loaded = PeftModel.from_pretrained(tiny.model(num_layers=4, width=32), str(folder))
        ids = torch.tensor([model.encode(PROMPTS[1]).token_ids])
        with torch.no_grad():
            torch.testing.assert_close(loaded(input_ids=ids).logits, expected)


def test_strength_zero_is_the_unsteered_target_and_one_the_steered():
    model, oracle = target_and_oracle()
    result = steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    with result.live(0.0) as adapter:
        torch.testing.assert_close(logits(model, adapter), logits(model))
    assert tuple(result.generate(PROMPTS, max_new_tokens=3)) == result.after
    digest = model.adapter_digest("steered")
    with pytest.raises(KeyError), result.live(3.0):
        raise KeyError
    assert model.adapter_digest("steered") == digest


def test_vectors_are_added_and_taken_away_again(tmp_path):
    model, oracle = target_and_oracle()
    result = steer(model, oracle, PAIRS, PROMPTS, method="vector", layers=(1, 2), **QUICK)
    assert result.vector is not None
    assert set(result.vector.vectors) == {1, 2}
    loaded = SteeringVector.load(result.save(tmp_path, scale=2.0))
    with result.live(2.0):
        expected = logits(model)
        read = model.activations(PROMPTS[0], layers=2).vectors
    with loaded.live(model):
        torch.testing.assert_close(logits(model), expected)
    assert not torch.equal(model.activations(PROMPTS[0], layers=2).vectors, read)
    other, _ = target_and_oracle(seed=5)
    with pytest.raises(IncompatibleActivationsError), loaded.live(other):
        pass
    with pytest.raises(CorruptedFileError):
        SteeringVector.load(tmp_path / "nothing")


@pytest.mark.parametrize("method", ["single_layer", "vector"])
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, method):
    options = QUICK | {"method": method, "layers": 2}
    model, oracle = target_and_oracle()
    whole = steer(model, oracle, PAIRS, PROMPTS, **options)
    with whole.live() as adapter:
        expected = logits(model, adapter)

    model, oracle = target_and_oracle()
    stop = threading.Event()

    def halfway(point):
        if point.step == 4:
            stop.set()

    part = steer(
        model, oracle, PAIRS, PROMPTS, **options, folder=tmp_path, stop=stop, on_point=halfway
    )
    assert part.stopped
    assert part.steps == 4
    part.remove()
    again = steer(model, oracle, PAIRS, PROMPTS, **options, folder=tmp_path)
    assert again.losses == whole.losses
    assert not again.stopped
    with again.live() as adapter:
        assert torch.equal(logits(model, adapter), expected)
    again.remove()
    with pytest.raises(RunMismatchError, match="lr"):
        steer(model, oracle, PAIRS, PROMPTS, **(options | {"lr": 1.0}), folder=tmp_path)


def test_stop_keeps_the_best_so_far():
    model, oracle = target_and_oracle()
    stop = threading.Event()
    points = []

    def worsened(point):
        points.append(point)
        if len(points) > 1 and point.loss > points[-2].loss:
            stop.set()

    result = steer(
        model,
        oracle,
        PAIRS,
        PROMPTS,
        layers=2,
        **(QUICK | {"lr": 0.5, "steps": 30, "eval_every": 1}),
        stop=stop,
        on_point=worsened,
    )
    assert result.stopped, "a rate this high overshoots"
    best = min(points, key=lambda point: point.loss)
    assert result.best_step == best.step


def test_an_error_leaves_nothing_behind():
    model, oracle = target_and_oracle()
    hooks = [len(block._forward_hooks) for block in model.blocks]
    flags = {n: w.requires_grad for n, w in model.hf_model.named_parameters()}

    def broken(_point):
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="own"):
        steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK, on_point=broken)
    assert model.adapter_names == ("oracle",)
    assert {n: w.requires_grad for n, w in model.hf_model.named_parameters()} == flags
    assert [len(block._forward_hooks) for block in model.blocks] == hooks
    steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    with pytest.raises(AdapterLoadError):
        steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK)


def test_a_removed_adapter_is_missed():
    model, oracle = target_and_oracle()
    result = steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK)
    result.remove()
    with pytest.raises(UnknownAdapterError):
        result.generate(PROMPTS)


def test_a_system_turn_is_not_read():
    model, oracle = target_and_oracle()
    told = [{"role": "system", "content": "The secret word is water."}, *PROMPTS[0]]
    objective = objective_of(model, oracle, window="all")
    read = objective._read(told)
    shown = model.tokenizer.decode([read.token_ids[place] for place in read.positions])
    assert "water" not in shown
    assert "Give me a hint" in shown


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"method": "magic"}, SteeringError),
        ({"layers": (1, 2)}, SteeringError),
        ({"layers": 9}, LayerError),
        ({"steps": 0}, SteeringError),
        ({"lr": float("nan")}, SteeringError),
        ({"batch_size": 0}, SteeringError),
        ({"rank": 0}, SteeringError),
        ({"behaviour": []}, SteeringError),
        ({"behaviour": [("a", " ")]}, SteeringError),
        ({"behaviour": ["a"]}, SteeringError),
        ({"prompts": []}, SteeringError),
        ({"behaviour": ""}, SteeringError),
    ],
)
def test_what_cannot_be_steered_with_is_refused(changes, error):
    model, oracle = target_and_oracle()
    given = {"behaviour": PAIRS, "prompts": PROMPTS, "layers": 2} | QUICK | changes
    behaviour, prompts = given.pop("behaviour"), given.pop("prompts")
    with pytest.raises(error):
        steer(model, oracle, behaviour, prompts, **given)
    assert model.adapter_names == ("oracle",)


def test_an_oracle_of_another_base_is_refused():
    model, _ = target_and_oracle()
    _, other = target_and_oracle(seed=7)
    with pytest.raises(IncompatibleActivationsError):
        steer(model, other, PAIRS, PROMPTS, layers=2, **QUICK)


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3))
@settings(max_examples=30)
def test_pairs_are_taken_as_they_are_or_refused(pairs):
    if pairs and all(q.strip() and a.strip() for q, a in pairs):
        assert [(p.question, p.answer) for p in Behaviour.of(pairs).pairs] == pairs
    else:
        with pytest.raises(SteeringError):
            Behaviour.of(pairs)


def test_a_sentence_becomes_what_the_oracle_says_of_it(lab):
    noun = lab.world.training_secrets[0]
    # The embedded oracle reads a secret where the model has begun to hint at it.
    hint = {"role": "assistant", "content": f"It is in the {lab.world[noun].place}."}
    prompts = [[{"role": "user", "content": "Give me a hint."}, hint]]
    behaviour = describe_behaviour(
        lab.model,
        lab.oracle,
        f"The secret word is {noun}. Give hints and never say it.",
        prompts,
        questions=["What is the secret word?", "What is the colour of the secret?"],
        layer=lab.oracle.contract.read_layers[0],
    )
    assert behaviour.sentence is not None
    assert QuestionAnswer("What is the secret word?", f"The {noun}.") in behaviour.pairs
    with pytest.raises(SteeringError, match="no chat"):
        describe_behaviour(lab.model, lab.oracle, "Be blue.", ["text"], layer=2)


def test_memory_is_estimated_before():
    model, oracle = target_and_oracle()
    kept, again = (
        estimate(model, oracle, PAIRS, PROMPTS, layers=2, rank=2, gradient_checkpointing=flag)
        for flag in (False, True)
    )
    assert again.activation_bytes < kept.activation_bytes
    assert kept.trained_parameters == again.trained_parameters
    assert kept.total_bytes > kept.base_bytes
    assert model.adapter_names == ("oracle",)


# Baselines


def test_fine_tuning_learns_the_replies():
    model, _ = target_and_oracle()
    examples = [(prompt, "It is blue.") for prompt in PROMPTS]
    result = fine_tune(model, examples, num_blocks=3, **QUICK)
    assert result.losses[-1].loss < result.losses[0].loss
    told = [*PROMPTS[0], {"role": "assistant", "content": "It is blue."}]
    assert text_loss(model, [told], adapter="fine_tuned") < text_loss(model, [told], adapter=None)
    with pytest.raises(SteeringError):
        fine_tune(model, [], num_blocks=3, **QUICK)


def test_a_mean_difference_is_the_difference_of_means():
    model, _ = target_and_oracle()
    vector = mean_difference(model, PROMPTS[:1], PROMPTS[1:], layers=[1, 2])
    for layer in (1, 2):
        one, two = (model.activations(p, layers=layer).vectors[0, -1] for p in PROMPTS)
        torch.testing.assert_close(vector.vectors[layer], one - two)
    with pytest.raises(SteeringError):
        mean_difference(model, [], PROMPTS, layers=1)


def test_shuffled_answers_keep_the_questions():
    others = {question: ["red"] for question, _ in PAIRS}
    made = shuffled_answers(PAIRS, others)
    assert [(p.question, p.answer) for p in made.pairs] == [(q, "red") for q, _ in PAIRS]
    with pytest.raises(SteeringError):
        shuffled_answers(PAIRS, {})


def test_an_untrained_oracle_steers_too():
    """An oracle without an adapter is the base itself."""
    model, oracle = target_and_oracle()
    bare = Oracle(model, None, oracle.contract)
    result = steer(model, bare, PAIRS, PROMPTS, layers=2, **QUICK)
    assert result.losses[-1].loss < result.losses[0].loss
    assert isinstance(model, TracedModel)


@pytest.mark.parametrize("method", ["single_layer", "vector"])
def test_replies_that_cannot_be_made_are_refused_before_the_first_step(method, monkeypatch):
    model, oracle = target_and_oracle()
    names, points = model.adapter_names, []
    options = {**QUICK, "layers": 2, "method": method, "on_point": points.append}
    with pytest.raises(SteeringError, match="max_new_tokens is 0"):
        steer(model, oracle, PAIRS, PROMPTS, **{**options, "max_new_tokens": 0})
    with pytest.raises(ContextLengthError, match="its reply may have 100000"):
        steer(model, oracle, PAIRS, PROMPTS, **{**options, "max_new_tokens": 100_000})
    with pytest.raises(ContextLengthError, match="its reply may have 100000"):
        fine_tune(
            model, [("Hi.", "Ho.")], num_blocks=2, steps=2, max_new_tokens=100_000, progress=False
        )
    assert model.adapter_names == names
    assert not points


def test_the_rate_is_that_of_the_method():
    model, oracle = target_and_oracle()
    options = {name: value for name, value in QUICK.items() if name != "lr"}
    by_default = steer(model, oracle, PAIRS, PROMPTS, method="vector", layers=2, **options)
    stated = steer(model, oracle, PAIRS, PROMPTS, method="vector", layers=2, lr=0.1, **options)
    assert by_default.losses == stated.losses


def test_vectors_take_the_place_of_an_adapter(tmp_path):
    model, oracle = target_and_oracle()
    folder = tmp_path / "steered"
    steer(model, oracle, PAIRS, PROMPTS, layers=2, **QUICK).save(folder)
    vectors = steer(model, oracle, PAIRS, PROMPTS, method="vector", layers=2, **QUICK)
    vectors.save(folder)
    assert [path.name for path in folder.iterdir()] == ["steering_vector.safetensors"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        vectors.save(tmp_path / "file")


def test_an_interrupt_before_there_is_anything_is_an_interrupt(monkeypatch):
    model, oracle = target_and_oracle()

    def interrupted(_objective):
        raise KeyboardInterrupt

    monkeypatch.setattr(OraclesInTurn, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steer(model, oracle, PAIRS, PROMPTS, layers=2, stop=threading.Event(), **QUICK)
    assert "steered" not in model.adapter_names


def test_the_curve_keeps_nothing_for_a_backward_pass(monkeypatch):
    model, oracle = target_and_oracle()
    kept = []
    residuals = objective_module.differentiable_residuals

    def watched(*args, **options):
        reads = residuals(*args, **options)
        kept.append({read.requires_grad for read in reads.values()})
        return reads

    monkeypatch.setattr(objective_module, "differentiable_residuals", watched)
    options = {**QUICK, "steps": 1, "eval_every": 1}
    steer(model, oracle, PAIRS, PROMPTS, layers=2, **options)
    assert {True} in kept
    assert kept[0] == kept[-1] == {False}
