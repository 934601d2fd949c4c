"""A prompt with several answers runs once, and gives the log-probabilities of each alone."""

import dataclasses

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.tracing import TracedModel

QUESTION = "What is the secret word?"
WORDS = ["water", "it", "a secret word that is blue", "Paris", "no"]

CONTRACT = OracleContract(
    base_model="tiny",
    dialect="activation_oracle",
    prefix_template="Layer: {layer}\n{placeholders} \n",
    placeholder=" ?",
    read_layers=(2,),
    layers_per_prompt="one",
    inject_layer=1,
    formula="add_norm_matched",
    coefficient=1.0,
    transform="none",
    position_ids="from_mask",
)
SHIFTED = {
    "dialect": "latentqa",
    "prefix_template": "{placeholders}",
    "inject_layer": 0,
    "formula": "replace",
    "position_ids": "shifted",
}


def oracle_of(architecture, **changes):
    model = TracedModel(tiny.model(architecture), tiny.tokenizer())
    contract = dataclasses.replace(CONTRACT, **changes)
    return Oracle(model, None, describe_tokenizer(contract, model.tokenizer))


def passes(oracle):
    """(rows, columns) of each forward while the returned list lives."""
    seen = []
    oracle.model.hf_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    return seen


@pytest.mark.parametrize("changes", [{}, SHIFTED], ids=["activation_oracle", "latentqa"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_answers_after_one_prompt_are_as_likely_as_answers_alone(architecture, changes):
    oracle = oracle_of(architecture, **changes)
    # Read spans of several lengths, so that prompts are padded and begin at other positions.
    acts = oracle.model.activations(
        ["My name is Anna and I live in Paris.", "Give me a hint."], layers=[2]
    )
    asked = [acts[0], acts[1][-2:], acts[0][3:5]]
    seen = passes(oracle)
    choices = oracle.choose(QUESTION, asked, WORDS, max_batch=64)
    assert [rows for rows, _ in seen] == [3, 15]
    for one, choice in zip(asked, choices, strict=True):
        alone = {word: oracle.score(QUESTION, one, word) for word in WORDS}
        assert choice.log_probs == pytest.approx(alone, abs=2e-4)


def test_a_cache_that_cannot_be_repeated_is_done_without(monkeypatch):
    oracle = oracle_of("Qwen3")
    acts = oracle.model.activations("Give me a hint.", layers=[2])
    expected = oracle.choose(QUESTION, acts, WORDS).log_probs
    (owner,) = (one for one in DynamicCache.__mro__ if "batch_select_indices" in vars(one))
    monkeypatch.delattr(owner, "batch_select_indices")
    seen = passes(oracle)
    assert oracle.choose(QUESTION, acts, WORDS).log_probs == pytest.approx(expected, abs=1e-4)
    assert seen[-1][0] == len(WORDS)


@pytest.fixture(scope="module")
def qwen():
    oracle = oracle_of("Qwen3")
    acts = oracle.model.activations(
        ["My name is Anna and I live in Paris.", "Give me a hint."], layers=[2]
    )
    return oracle, [acts[0][-3:], acts[1]]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(
            st.text("abc dP ", min_size=1, max_size=9).map(str.strip).filter(bool),
            min_size=2,
            max_size=6,
            unique=True,
        ),
        min_size=2,
        max_size=2,
    ),
    st.integers(1, 9),
)
def test_any_lists_in_batches_of_any_size(qwen, lists, max_batch):
    oracle, asked = qwen
    choices = oracle.choose([QUESTION] * 2, asked, lists, max_batch=max_batch)
    for one, own, choice in zip(asked, lists, choices, strict=True):
        assert list(choice.log_probs) == own
        for word in own:
            alone = oracle.score(QUESTION, one, word)
            assert choice.log_probs[word] == pytest.approx(alone, abs=2e-4)


def test_the_injection_is_in_the_prompt_of_every_answer(qwen):
    oracle, (acts, _) = qwen
    nothing = dataclasses.replace(acts, vectors=torch.zeros_like(acts.vectors))
    read, unread = (oracle.choose(QUESTION, one, WORDS).log_probs for one in (acts, nothing))
    assert all(abs(read[word] - unread[word]) > 1e-6 for word in WORDS)
