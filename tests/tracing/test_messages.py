"""Messages are found in any chat template, whatever they say."""

from pathlib import Path

import pytest
import tiny
from chat_templates import TEMPLATES, text_before
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.tracing import Activations, TracedModel
from aotoolkit.tracing.encoding import Encoded, encode

CONTENT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n \ue000\ue001"), max_size=30
) | st.sampled_from(["<|im_end|>\n<|im_start|>user\n", "user", "[INST] a [/INST]", "<think>a"])


def chat(*contents: str, system: bool = False) -> list[dict[str, str]]:
    roles = ["system"] * system + ["user", "assistant"] * 2
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def encoded(template: str, messages: list[dict[str, str]], *, reply: bool = True) -> Encoded:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return encode(tokenizer, messages, add_generation_prompt=reply, vocabulary_size=tiny.VOCABULARY)


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENT, min_size=1, max_size=4), system=st.booleans())
def test_every_message_stands_where_it_was_written(name, contents, system):
    messages = chat(*contents, system=system)
    if name == "gemma" and messages[-1]["role"] == "system":
        return  # that template writes a system prompt into a user's turn only
    one = encoded(TEMPLATES[name], messages, reply=messages[-1]["role"] != "assistant")
    assert [span.role for span in one.messages] == [m["role"] for m in messages]
    assert one.messages[0].start == 0
    for span, following in zip(one.messages, one.messages[1:], strict=False):
        assert span.end == following.start
    for turn, (span, message) in enumerate(zip(one.messages, messages, strict=True)):
        assert span.start <= span.content_start <= span.content_end <= span.end
        written = one.text[span.content_start : span.content_end]
        expected = message["content"]
        if name == "llama" or (name == "gemma" and message["role"] != "system"):
            expected = expected.strip()
        if name == "qwen3" and message["role"] == "assistant":
            expected = expected.split("</think>")[-1].lstrip("\n")
        assert written == expected
        if turn:
            assert one.text[: span.start] == text_before(name, messages, turn)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_header_of_a_reply_belongs_to_no_message(name):
    messages = chat("one", "two", "three")
    with_header, without = (
        encoded(TEMPLATES[name], messages, reply=reply) for reply in (True, False)
    )
    assert with_header.messages == without.messages
    assert without.messages[-1].end == len(without.text)


def test_only_messages_that_are_written_once_are_found():
    template = "{{ messages[0].content }}|{{ messages[1].content }}|{{ messages[1].content }}"
    spans = encoded(template, chat("one", "two", "three")).messages
    assert [(span.role, span.content_start, span.content_end) for span in spans] == [("user", 0, 3)]


def test_messages_in_another_order_are_not_found():
    template = "{% for m in messages | reverse %}{{ m.content }}.{% endfor %}"
    spans = encoded(template, chat("one", "three")).messages
    assert [(span.role, span.content_start, span.content_end) for span in spans] == [("user", 6, 9)]


def test_a_template_that_takes_no_mark_is_read_all_the_same():
    template = "{{ raise_exception('x') if messages[0].content != 'a' }}{{ messages[0].content }}"
    one = encoded(template, chat("a"))
    assert one.text == "a"
    assert one.messages == ()


def test_other_prompts_have_no_messages():
    one = encode(tiny.tokenizer(), "<|im_start|>user\nx<|im_end|>", vocabulary_size=400)
    assert one.messages == ()


def test_activations_keep_their_messages(tmp_path: Path):
    model = TracedModel(tiny.model("Qwen3"), tiny.tokenizer())
    messages = chat("Give me a hint.", "No.", system=False)
    acts = model.activations(messages, layers=[0])
    assert [span.role for span in acts.messages] == ["user", "assistant"]
    span = acts[2:5].messages[0]
    assert acts.text[span.content_start : span.content_end] == "Give me a hint."
    acts.save(tmp_path / "acts.safetensors")
    assert Activations.load(tmp_path / "acts.safetensors").messages == acts.messages
    assert model.activations("plain", layers=[0]).messages == ()
