"""Turns are found in any chat template, whatever the messages say."""

import pytest
import tiny
from chat_templates import TEMPLATES, text_before
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data.context import encode_context, is_text, turn_start
from aotoolkit.errors import ChatTemplateError, DataError, PromptError
from aotoolkit.tracing.encoding import encode

CONTENT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n \ue000\ue001"), max_size=30
) | st.sampled_from(
    ["<|im_end|>\n<|im_start|>user\n", "user", "[INST] a [/INST]", "{{ 1 }}", "<think>a</think>b"]
)


def with_template(name: str):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def chat(*contents: str, system: bool = False) -> list[dict[str, str]]:
    roles = ["system"] * system + ["user", "assistant"] * 2
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENT, min_size=2, max_size=4), system=st.booleans(), data=st.data())
def test_a_turn_begins_where_the_ones_before_it_end(name, contents, system, data):
    tokenizer = with_template(name)
    messages = chat(*contents, system=system)
    turn = data.draw(st.integers(1, len(messages) - 1))
    # A reply to come keeps the last message's form apart from that of an earlier one.
    prompted = messages[-1]["role"] != "assistant"
    start = turn_start(tokenizer, messages, turn, add_generation_prompt=prompted)
    text = encode_context(tokenizer, messages, add_generation_prompt=prompted).text
    assert text[:start] == text_before(name, messages, turn)


def test_the_first_turn_begins_the_chat():
    messages = chat("a", "b")
    assert turn_start(with_template("llama"), messages, 0) == 0
    with pytest.raises(DataError, match="no turn 2"):
        turn_start(with_template("llama"), messages, 2)


def test_a_template_that_reorders_messages_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages | reverse %}{{ m.content }}.{% endfor %}"
    with pytest.raises(DataError, match="one after the other"):
        turn_start(tokenizer, chat("aa", "bb"), 1)


def test_a_template_that_drops_messages_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(DataError, match="one after the other"):
        turn_start(tokenizer, chat("aa", "bb"), 1)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_token_ids_are_those_of_tracing(text):
    tokenizer = tiny.tokenizer()
    for prompt in (text, chat(text, "reply")):
        expected = encode(
            tokenizer, prompt, add_generation_prompt=False, vocabulary_size=tiny.VOCABULARY
        )
        context = encode_context(tokenizer, prompt)
        assert context.token_ids == expected.token_ids
        assert context.offsets == expected.offsets
        assert context.text == expected.text


def test_what_cannot_be_a_context():
    with pytest.raises(PromptError):
        encode_context(tiny.tokenizer(), "")
    with pytest.raises(ChatTemplateError):
        encode_context(tiny.tokenizer(chat=False), chat("a"))


def test_nothing_to_read():
    context = encode_context(tiny.tokenizer(), "water is blue")
    assert context.first_readable == 1
    assert context.first_from(6) > 1
    with pytest.raises(DataError, match="No token stands after character 13"):
        context.first_from(13)
    assert encode_context(tiny.tokenizer(), "a").first_readable == 0


def test_texts():
    assert is_text("a")
    assert not any(map(is_text, ["", " \n", "\ud800", None, 3, ["a"]]))
