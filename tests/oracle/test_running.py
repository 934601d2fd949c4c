"""A prompt with several answers runs once, and gives the log-probabilities of each alone."""

import contextlib
import dataclasses

import pytest
import tiny
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.continuations import MAX_TOKENS, continuation_log_probs, sharing_batches
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


# What is neither keys nor values stays as it was when a cache is repeated, or is in no cache.
RECURRENT = {
    "Lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "FalconH1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "RecurrentGemma": {"lru_width": 32, "attention_window_size": 64},
}


def recurrent(name):
    sizes = {
        "vocab_size": len(tiny.tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes | RECURRENT[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", RECURRENT)
def test_prompts_that_cannot_be_shared_run_with_each_candidate(name):
    model = recurrent(name)
    ids = torch.tensor([tiny.tokenizer().encode("Give me a hint.")])
    mask = torch.ones_like(ids)
    shared = continuation_log_probs(
        model,
        [[[5, 6], [7]]],
        input_ids=ids,
        attention_mask=mask,
        position_ids=mask.cumsum(-1) - 1,
        prompts=contextlib.nullcontext(),
    )
    assert shared is None


def test_oracles_on_them_choose_as_before():
    model = TracedModel(recurrent("Lfm2"), tiny.tokenizer())
    oracle = Oracle(model, None, describe_tokenizer(CONTRACT, model.tokenizer))
    acts = model.activations(["Give me a hint.", "My name is Anna."], layers=[2])
    seen = passes(oracle)
    choices = oracle.choose(QUESTION, acts, WORDS, max_batch=6)
    # One attempt, and then all candidates with their prompts.
    assert sum(rows for rows, _ in seen) == 1 + 10
    for one, choice in zip(acts, choices, strict=True):
        alone = {word: oracle.score(QUESTION, one, word) for word in WORDS}
        assert choice.log_probs == pytest.approx(alone, abs=2e-4)


def test_batches_stay_within_their_limits():
    groups = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    prompts = [30] * 5 + [10] * 2 + [20] * 3
    batches = list(sharing_batches(groups, prompts, [3] * 10, max_batch=4))
    assert sorted(i for batch in batches for part in batch for i in part) == list(range(10))
    assert all(sum(map(len, batch)) <= 4 for batch in batches)
    for batch in batches:
        for part in batch:
            assert any(set(part) <= set(group) for group in groups)
    # A short prompt with a long candidate beside a long prompt: both widths count.
    half = MAX_TOKENS // 4
    parted = list(sharing_batches([[0, 1], [2, 3]], [5, 5, half, half], [half, half, 5, 5], 100))
    assert len(parted) == 2


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
