"""Prompts and pairs as lines: what goes in comes out, whatever is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import PromptError, SteeringError
from aotoolkit.steering import QuestionAnswer
from aotoolkit.widgets.lines import pairs_of, pairs_text, prompts_of, prompts_text

awkward = st.text() | st.sampled_from(
    ["a\nb", " a ", "[{", '["', '["a"]', '[{"role": "user", "content": "a"}]', "a => b", "\r", "⏎"]
)
spoken = awkward.filter(str.strip)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": awkward}
    ),
    min_size=2,
)


def user(text):
    return [{"role": "user", "content": text}]


@given(st.lists(awkward | turns))
def test_prompts_come_out_as_they_went_in(prompts):
    assert prompts_of(prompts_text(prompts)) == prompts


@given(st.lists(awkward))
def test_an_only_user_turn_is_its_text(texts):
    assert prompts_of(prompts_text(map(user, texts))) == texts


@given(st.lists(st.tuples(spoken, spoken)))
def test_pairs_come_out_as_they_went_in(pairs):
    assert pairs_of(pairs_text(QuestionAnswer(*pair) for pair in pairs)) == pairs


def test_what_a_user_writes_is_read():
    assert prompts_of("  Hello. \r\n\n Give me [a] hint.\u2028It is \x85 late.") == [
        "Hello.",
        "Give me [a] hint.\u2028It is \x85 late.",
    ]
    assert prompts_of('["two\\nlines"]\n[{"role": "user", "content": "Hi."}]') == [
        "two\nlines",
        user("Hi."),
    ]
    assert pairs_of("What is it?=>A => sign.\n\n") == [("What is it?", "A => sign.")]
    assert pairs_text([QuestionAnswer("What?", "That.")]) == "What? => That."


@pytest.mark.parametrize(
    "line", ['["a", "b"]', "[{", '[{"role": "user"}]', '["a"', '[{"role": 1, "content": "a"}]']
)
def test_json_that_is_no_prompt_is_named(line):
    with pytest.raises(PromptError, match="Line 3 of the prompts"):
        prompts_of(f"Hello.\n\n{line}")


@pytest.mark.parametrize("line", ["What?", "=> The tiger.", "What? =>", '["a"]', '["a", 1]', '["'])
def test_a_line_that_is_no_pair_is_named(line):
    with pytest.raises(SteeringError, match=r"Line 2 of the pairs .* => The tiger\."):
        pairs_of(f"What? => That.\n{line}")
