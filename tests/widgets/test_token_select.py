"""The token list without a browser: what fits, what is selected, what is shown without script."""

import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

from aotoolkit.errors import PositionError
from aotoolkit.tracing.encoding import Encoded, encode
from aotoolkit.widgets import TokenSelect
from aotoolkit.widgets.base import visible
from aotoolkit.widgets.token_select import to_ranges

TOKENIZER = tiny.tokenizer()
CHAT = [
    {"role": "system", "content": "Say little."},
    {"role": "user", "content": "Give me a hint."},
    {"role": "assistant", "content": "It is blue 🙂, and water."},
    {"role": "user", "content": "What is it?"},
]


def prompt(messages: Any = CHAT, **options: Any) -> Encoded:
    return encode(TOKENIZER, messages, vocabulary_size=tiny.VOCABULARY, **options)


class Text(HTMLParser):
    """What HTML says, and with which elements."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags = "", set()
        self.marked: list[str] = []
        self._inside = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not attrs
        self.tags.add(tag)
        if tag == "mark":
            self._inside = True
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "mark":
            self._inside = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._inside:
            self.marked[-1] += data


# --- traits -------------------------------------------------------------------------------------


def test_a_selection_is_sorted_and_each_once():
    tokens = TokenSelect(tokens=list("abcdef"), selection=[4, 1, 4, 2])
    assert tokens.selection == [1, 2, 4]
    assert tokens.ranges == [(1, 3), (4, 5)]
    assert tokens.text == "bc … e"


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (
            {"selection": [5]},
            "selection [5] does not fit a prompt of 2 tokens (valid positions are 0 to 1)",
        ),
        ({"selection": [-1]}, "selection [-1] does not fit a prompt of 2 tokens"),
        ({"tokens": [], "selection": [0]}, "selection [0] does not fit a prompt of 0 tokens"),
        ({"special": [2]}, "special [2] does not fit a prompt of 2 tokens"),
        ({"scores": [1.0]}, "scores has 1 numbers for 2 tokens; give one for each token"),
        ({"scores": [1.0, float("nan")]}, "scores holds NaN or infinity; give None"),
        ({"scores": [1.0, float("inf")]}, "scores holds NaN or infinity; give None"),
        ({"max_positions": 0}, "max_positions is 0; give 1 or more, or None"),
        (
            {"max_positions": 1, "selection": [0, 1]},
            "selection of 2 tokens is more than max_positions allows (1); select fewer",
        ),
        ({"roles": [["user", 0, 3]]}, "roles go up to token 3, but the prompt has 2 tokens"),
        ({"roles": [["user", 1, 1]]}, "roles has ['user', 1, 1]; give [role, start, stop]"),
        ({"roles": [["a", 0, 2], ["b", 1, 2]]}, "in order and without overlap"),
        ({"roles": [["user", 0]]}, "roles has ['user', 0]; give [role, start, stop]"),
        ({"granularity": "line"}, "'token', 'word', 'message'"),
    ],
)
def test_what_does_not_fit_is_refused(traits: dict[str, Any], message: str):
    with pytest.raises(TraitError, match=re.escape(message)):
        TokenSelect(**({"tokens": ["a", "b"]} | traits))


def test_a_refused_value_changes_nothing():
    tokens = TokenSelect(tokens=["a", "b"], selection=[1])
    with pytest.raises(TraitError, match="does not fit"):
        tokens.selection = [2]
    with pytest.raises(TraitError, match="does not fit"):
        tokens.tokens = ["a"]
    assert (tokens.tokens, tokens.selection) == (["a", "b"], [1])


def test_a_refused_prompt_changes_nothing():
    tokens = TokenSelect.from_prompt(prompt()).select("user")
    before = tokens.front_end_state()
    with pytest.raises(TraitError, match="scores has 1 numbers"):
        tokens.show(prompt("another"), scores=[1.0])
    assert tokens.front_end_state() == before
    assert tokens.text == "Give me a hint. … What is it?"


# --- from a prompt ------------------------------------------------------------------------------


def test_a_chat_is_grouped_and_its_template_set_apart():
    one = prompt()
    tokens = TokenSelect.from_prompt(one)
    assert [role for role, _, _ in tokens.roles] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",  # the header of the reply to come
    ]
    bounds = [bound for _, start, stop in tokens.roles for bound in (start, stop)]
    assert bounds[0] == 0
    assert bounds[-1] == len(one)
    assert bounds[1:-1:2] == bounds[2::2]
    said = [i for i in range(len(one)) if i not in tokens.special]
    assert "".join(one.text[slice(*one.offsets[i])] for i in said[:3]) in CHAT[0]["content"]
    assert {one.tokens[i] for i in tokens.special} >= {"<|im_start|>", "<|im_end|>"}
    assert not {one.tokens[i] for i in said} & {"<|im_start|>", "<|im_end|>"}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.booleans())
def test_roles_select_what_was_said(content: str, reply: bool):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    tokens = TokenSelect.from_prompt(prompt(messages, add_generation_prompt=reply)).select("user")
    assert tokens.text == content
    assert len(tokens.ranges) == 1


def test_a_text_has_neither_messages_nor_template():
    tokens = TokenSelect.from_prompt(prompt("Give me a hint."))
    assert (tokens.roles, tokens.special) == ([], [])
    assert "".join(tokens.tokens) == "Give me a hint."


def test_activations_are_taken_by_the_selection(lab):
    acts = lab.model.activations(CHAT, layers=[2])
    tokens = TokenSelect.from_activations(acts, max_positions=20).select("assistant")
    chosen = acts[tokens.selection]
    assert "".join(chosen.tokens).startswith("It is blue")
    part = acts[-6:]
    tokens = TokenSelect.from_activations(part).select([0, -1])
    assert part[tokens.selection].positions == (acts.positions[-6], acts.positions[-1])
    # In any order, as activations may be.
    mixed = TokenSelect.from_activations(acts[[30, 4, 31, 3]])
    assert [stop - start for _, start, stop in mixed.roles] == [1, 1, 1, 1]


def test_a_split_character_is_shown_in_its_first_token():
    tokens = TokenSelect.from_prompt(prompt("a 🙂 b"))
    assert "".join(tokens.tokens).replace("‥", "") == "a 🙂 b"
    assert tokens.tokens.count("‥") == 3
    tokens.select(re.compile("🙂"))
    assert len(tokens.selection) == 4
    assert tokens.text == "🙂"


@given(st.text(st.sampled_from("ab é🙂ß日\n"), min_size=1, max_size=12))
def test_split_characters_are_shown_once_also_for_token_ids(text: str):
    token_ids = TOKENIZER(text)["input_ids"]
    for source in (prompt(text), prompt(token_ids)):
        tokens = TokenSelect.from_prompt(source)
        shown = "".join(tokens.tokens).replace("‥", "").replace("\ufffd", "")
        assert shown == text


def test_other_tokens_are_shown_without_the_old_selection():
    tokens = TokenSelect.from_prompt(prompt(), scores=[0.5] * len(prompt())).select("user")
    tokens.show(prompt("What is it?"))
    assert (tokens.selection, tokens.scores, tokens.roles) == ([], [], [])
    assert tokens.select(slice(None)).text == "What is it?"


# --- select -------------------------------------------------------------------------------------


def test_select_by_place():
    tokens = TokenSelect(tokens=list("abcdef"))
    assert tokens.select(2).selection == [2]
    assert tokens.select(-1).selection == [5]
    assert tokens.select(slice(-3, None)).selection == [3, 4, 5]
    assert tokens.select(range(0, 6, 2)).selection == [0, 2, 4]
    assert tokens.select([5, -6], add=True).selection == [0, 2, 4, 5]


def test_select_by_regular_expression():
    tokens = TokenSelect(tokens=["Give", " me", " a", " hint", ".\n", "A", " hint"])
    assert tokens.select(re.compile("hint")).selection == [3, 6]
    assert tokens.select(re.compile(r"me a")).selection == [1, 2]
    assert tokens.select(re.compile("^a", re.IGNORECASE | re.MULTILINE)).selection == [5]
    tokens = TokenSelect.from_prompt(prompt())
    assert tokens.select(re.compile("is blue")).text.strip() == "is blue"


def test_select_by_role():
    tokens = TokenSelect.from_prompt(prompt())
    assert tokens.select("user").text == "Give me a hint. … What is it?"
    assert tokens.select("assistant").text == "It is blue 🙂, and water."
    whole = tokens.select("assistant", template=True).text
    assert whole.startswith("<|im_start|>assistant\nIt is")
    assert whole.endswith(" … <|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("tool", "No message has the role 'tool'; the roles are ['system', 'user', 'assistant']"),
        (re.compile("absent"), "No token is touched by a match of 'absent'"),
        (re.compile("x*"), "No token is touched by a match of 'x*'"),
        (slice(4, 4), "is empty. To select nothing, set selection = []"),
        ([], "is empty. To select nothing, set selection = []"),
        (1000, "Place 1000 is out of range: there are"),
    ],
)
def test_what_cannot_be_selected_says_so(what: Any, message: str):
    tokens = TokenSelect.from_prompt(prompt()).select("user")
    before = tokens.selection
    with pytest.raises(PositionError, match=re.escape(message)):
        tokens.select(what)
    assert tokens.selection == before


def test_a_role_of_template_tokens_only_says_how_to_have_them():
    tokens = TokenSelect.from_prompt(prompt([{"role": "user", "content": "a"}]))
    with pytest.raises(PositionError, match="Give template=True"):
        tokens.select("assistant")
    assert tokens.select("assistant", template=True).text == "<|im_start|>assistant\n"


def test_select_keeps_to_the_cap():
    tokens = TokenSelect(tokens=list("abcdef"), max_positions=2)
    with pytest.raises(TraitError, match=r"more than max_positions allows \(2\)"):
        tokens.select(slice(0, 3))


@given(st.sets(st.integers(0, 40)))
def test_ranges_cover_what_was_selected(places: set[int]):
    ranges = to_ranges(places)
    assert [i for start, stop in ranges for i in range(start, stop)] == sorted(places)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))


# --- without script -----------------------------------------------------------------------------

HOSTILE = st.sampled_from(["</script>", "<!--", "<b>", "&amp;", '"', "\u202e", "\x00"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=5
)


@given(st.lists(HOSTILE, min_size=1, max_size=8), st.data())
def test_static_html_is_text_with_marks(tokens: list[str], data: st.DataObject):
    selection = data.draw(st.sets(st.integers(0, len(tokens) - 1)))
    widget = TokenSelect(tokens=tokens, selection=list(selection), label="<i>&")
    said = Text(widget.static_html())
    assert said.tags <= {"div", "p", "b", "code", "mark", "br"}
    assert "".join(map(visible, tokens)) in said.text
    assert "<i>&" in said.text
    expected = ["".join(visible(tokens[i]) for i in range(a, b)) for a, b in widget.ranges]
    assert said.marked == expected
    assert f"{len(selection) or 'None'} of {len(tokens)} tokens selected" in said.text


def test_static_html_names_the_roles():
    said = Text(TokenSelect.from_prompt(prompt()).select("system").static_html())
    assert said.text.index("system") < said.text.index("Say·little") < said.text.index("user")
    assert TokenSelect(tokens=list("abcd"), roles=[["user", 1, 2]]).static_html().count("<p>") == 5


def test_every_output_has_html_beside_the_live_view():
    tokens = TokenSelect(tokens=["a", "b"], selection=[1])
    data, _ = tokens._repr_mimebundle_()
    assert data["text/html"] == tokens.static_html() == tokens.snapshot().data
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == repr(tokens) == "TokenSelect(1 of 2 tokens selected: 1)"


def test_widgets_need_no_torch():
    code = (
        "import sys, aotoolkit.widgets; assert 'anywidget' not in sys.modules;"
        "aotoolkit.widgets.TokenSelect; aotoolkit.widgets.LayerTokenGrid; aotoolkit.widgets.page;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_unknown_name_is_refused():
    import aotoolkit.widgets

    with pytest.raises(AttributeError, match="no attribute 'TokenSelekt'"):
        _ = aotoolkit.widgets.TokenSelekt  # pyright: ignore[reportAttributeAccessIssue]


def test_the_text_of_a_part_of_a_prompt_leaves_out_what_was_not_read(lab):
    acts = lab.model.activations("What is the secret word?", layers=[2], positions=[0, 1, 3])
    chosen = TokenSelect.from_activations(acts).select(slice(None))
    start, middle, end = acts.offsets
    assert chosen.text == f"{acts.text[start[0] : middle[1]]} … {acts.text[end[0] : end[1]]}"
