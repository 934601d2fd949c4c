"""Prompts: every form, hostile ones, and where each token stands."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import (
    ChatTemplateError,
    ContextLengthError,
    LayerError,
    NonFiniteError,
    PositionError,
    PromptError,
)
from aotoolkit.tracing import Activations, TracedModel
from aotoolkit.tracing.encoding import encode, is_batch

TOKENIZER = tiny.tokenizer()


def encoded(prompt: Any, **options: Any) -> Any:
    return encode(TOKENIZER, prompt, vocabulary_size=tiny.VOCABULARY, **options)


@given(st.text(min_size=1, max_size=40))
def test_offsets_of_any_text_cover_it(text: str) -> None:
    one = encoded(text)
    assert one.text == text
    assert list(one.token_ids) == TOKENIZER(text)["input_ids"]
    assert len(one.tokens) == len(one.offsets) == len(one)
    covered: set[int] = set()
    for start, end in one.offsets:
        assert 0 <= start <= end <= len(text)
        covered |= set(range(start, end))
    assert covered == set(range(len(text)))


@given(st.text(alphabet=st.sampled_from("ab é🙂ß日\n?"), min_size=1, max_size=20))
def test_offsets_of_token_ids_follow_the_decoded_text(text: str) -> None:
    token_ids = TOKENIZER(text)["input_ids"]
    one = encoded(token_ids)
    assert one.text == text
    assert one.offsets[0][0] == 0
    assert one.offsets[-1][1] == len(text)
    for (_, end), (start, _) in zip(one.offsets, one.offsets[1:], strict=False):
        assert end == start
    for token, (start, end) in zip(one.tokens, one.offsets, strict=True):
        if "\ufffd" not in token:
            assert text[start:end] == token


def test_a_chat_is_the_template_and_nothing_else() -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "hello ?"}]
    for generation_prompt in (True, False):
        one = encoded(messages, add_generation_prompt=generation_prompt)
        ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=generation_prompt)
        assert list(one.token_ids) == ids["input_ids"]
        assert one.chat
        assert one.text.endswith("assistant\n") == generation_prompt
    assert "".join(one.text[start:end] for start, end in one.offsets) == one.text


def test_the_tokenizer_is_left_alone(model: TracedModel) -> None:
    before = dict(vars(model.tokenizer)) | {"special": dict(model.tokenizer.special_tokens_map)}
    model.activations(["a", "a longer prompt"], layers=[1])
    model.generate(["a", "a longer prompt"], max_new_tokens=1)
    after = dict(vars(model.tokenizer)) | {"special": dict(model.tokenizer.special_tokens_map)}
    assert before == after
    assert model.tokenizer.pad_token is None
    assert model.tokenizer.padding_side == "right"


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], ["ok", ""], [1, "a"], [{"role": "user"}], [{"content": "x"}], [1.5], 7, None,
     [{"role": "user", "content": 3}], [-1], [tiny.VOCABULARY], [True], [{"role": "user"}, 3], {}],
    ids=str,
)  # fmt: skip
def test_prompts_that_are_none(model: TracedModel, prompt: Any) -> None:
    with pytest.raises(PromptError):
        model.activations(prompt, layers=[1])
    with pytest.raises(PromptError):
        model.generate(prompt)


def test_a_chat_without_a_template() -> None:
    traced = TracedModel(tiny.model(), tiny.tokenizer(chat=False))
    with pytest.raises(ChatTemplateError, match="Give the prompt as a string"):
        traced.activations([{"role": "user", "content": "hi"}], layers=[1])
    traced.activations("hi", layers=[1])


def test_a_template_that_refuses() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="roles must alternate"):
        encode(tokenizer, [{"role": "user", "content": "hi"}], vocabulary_size=400)


def test_longer_than_the_context(model: TracedModel) -> None:
    full = [5] * tiny.CONTEXT
    model.activations(full, layers=[0], positions=[-1])
    with pytest.raises(ContextLengthError, match="257 tokens; the context of tiny is 256"):
        model.activations([*full, 5], layers=[0])
    with pytest.raises(ContextLengthError, match="lower max_new_tokens"):
        model.generate(full[10:], max_new_tokens=11)
    ids = torch.full((1, tiny.CONTEXT + 1), 5)
    with pytest.raises(ContextLengthError):
        model.residuals(ids, torch.ones_like(ids), layers=[0])


def test_positions_and_layers_outside(model: TracedModel) -> None:
    n = len(model.encode("Give me a hint."))
    acts = model.activations("Give me a hint.", layers=[-1, 0], positions=[-1, 0])
    assert acts.layers == (3, 0)
    assert acts.positions == (n - 1, 0)
    whole = model.activations("Give me a hint.", layers=[-1, 0])
    assert torch.equal(acts.vectors, whole.vectors[:, [n - 1, 0]])
    assert model.activations("Give me a hint.", layers=0, positions=slice(-2, None)).positions == (
        n - 2,
        n - 1,
    )
    for positions in ([n], [-n - 1], [], slice(3, 3)):
        with pytest.raises(PositionError):
            model.activations("Give me a hint.", layers=[0], positions=positions)
    for layers in ([4], [-5], 1.0, -0.1, [], [2, 0.5], ["a"]):
        with pytest.raises(LayerError):
            model.activations("Give me a hint.", layers=layers)
    assert [model.resolve_layer(f) for f in (0.0, 0.25, 0.5, 0.99, 3, -1)] == [0, 1, 2, 3, 3, 3]


def test_nan_in_a_weight_is_named(model: TracedModel) -> None:
    with torch.no_grad():
        model.blocks[2].mlp.down_proj.weight[0, 0] = float("nan")
    model.activations("hi", layers=[1])
    with pytest.raises(NonFiniteError, match="layer 2"):
        model.activations("hi", layers=[1, 2])


def test_batches_of_mixed_forms_keep_their_order(model: TracedModel) -> None:
    prompts = ["What is the secret word?", [{"role": "user", "content": "hi"}], [5, 6], "a"]
    for size in (1, 2, None):
        batch = model.activations(prompts, layers=[1], batch_size=size)
        assert [acts.context_ids for acts in batch] == [
            model.encode(prompt).token_ids for prompt in prompts
        ]
        assert [a.provenance.chat_template_digest is None for a in batch] == [
            True,
            False,
            True,
            True,
        ]
    with pytest.raises(PromptError, match="batch_size"):
        model.activations(prompts, layers=[1], batch_size=0)


def test_what_is_a_batch() -> None:
    assert is_batch(["a"])
    assert is_batch([[1]])
    assert is_batch([[{"role": "user", "content": "x"}]])
    assert not is_batch("a")
    assert not is_batch([1])
    assert not is_batch([{"role": "user", "content": "x"}])


# What a chat template is told

THINKING_TEMPLATE = tiny.CHAT_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "no thought\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello ?"}]


def thinking_model(**options: Any) -> TracedModel:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = THINKING_TEMPLATE
    return TracedModel(tiny.model(), tokenizer, name="tiny", **options)


def test_the_template_is_told_what_the_call_or_else_the_model_says() -> None:
    off = {"enable_thinking": False}
    plain, set_off = thinking_model(), thinking_model(chat_template_kwargs=off)
    assert not plain.encode(HELLO).text.endswith("no thought\n")
    assert plain.encode(HELLO, chat_template_kwargs=off).text.endswith("no thought\n")
    assert set_off.encode(HELLO).text.endswith("no thought\n")
    assert set_off.encode(HELLO, chat_template_kwargs={}) == plain.encode(HELLO)


def test_reads_and_replies_use_it_and_reads_say_so() -> None:
    off = {"enable_thinking": False}
    plain, set_off = thinking_model(), thinking_model(chat_template_kwargs=off)
    told = plain.activations(HELLO, layers=1, chat_template_kwargs=off)
    by_default = set_off.activations(HELLO, layers=1)
    assert told.text == by_default.text == plain.encode(HELLO, chat_template_kwargs=off).text
    assert told.provenance.chat_template_kwargs == off == by_default.provenance.chat_template_kwargs
    assert plain.activations(HELLO, layers=1).provenance.chat_template_kwargs == {}
    assert set_off.activations("hello ?", layers=1).provenance.chat_template_kwargs == {}
    replies = {"max_new_tokens": 8}
    assert plain.generate(HELLO, chat_template_kwargs=off, **replies) == set_off.generate(
        HELLO, **replies
    )
    assert plain.generate(told.text, **replies) == set_off.generate(HELLO, **replies)


def test_it_is_kept_when_activations_are_saved(tmp_path: Path) -> None:
    acts = thinking_model(chat_template_kwargs={"enable_thinking": False}).activations(
        HELLO, layers=1
    )
    acts.save(tmp_path / "acts.safetensors")
    loaded = Activations.load(tmp_path / "acts.safetensors")
    assert loaded.provenance == acts.provenance


def test_the_template_cannot_be_told_what_is_not_its_own() -> None:
    with pytest.raises(PromptError, match="add_generation_prompt"):
        thinking_model().encode(HELLO, chat_template_kwargs={"add_generation_prompt": False})
