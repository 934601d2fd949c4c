"""Abstentions: a stated share, no answer to be had from what is read, nothing else changed."""

import dataclasses
import itertools
import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data import Abstention, ContextPrediction, Example, LayerChoice, TextSpec
from aotoolkit.data.abstention import ABSTENTION_ANSWER
from aotoolkit.errors import DataError


@dataclasses.dataclass(frozen=True)
class Made:
    """A source of given groups: for each the questions that are asked of its context."""

    name: str
    questions: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...] = ()

    def groups(self, seed):
        for index, asked in enumerate(self.questions):
            yield [
                Example(
                    context_ids=(index, 7, 8, 9),
                    positions=(place % 4,),
                    layers=(place % 3,),
                    question=question,
                    answer="Yes",
                    choices=("Yes", "No"),
                    source=self.name,
                    group=self.keys[index] if self.keys else "",
                )
                for place, question in enumerate(asked)
            ]

    def describe(self):
        return {"kind": "made", "name": self.name}


def different(count, each=2, name="made"):
    return Made(name, tuple(tuple(f"{name} {i} {k}?" for k in range(each)) for i in range(count)))


def turned(source, seed=0):
    """The abstentions and the other examples."""
    examples = list(itertools.chain(*source.groups(seed)))
    return (
        [e for e in examples if e.source == source.name],
        [e for e in examples if e.source != source.name],
    )


@given(
    groups=st.integers(2, 70),
    each=st.integers(1, 4),
    share=st.floats(0.01, 1),
    kinds=st.sets(st.sampled_from(["zero", "random", "unrelated"]), min_size=1),
    seed=st.integers(0, 5),
)
def test_each_example_comes_out_once_kept_or_turned(groups, each, share, kinds, seed):
    wrapped = different(groups, each)
    source = Abstention(
        name="abstention", sources=(wrapped,), share=share, kinds=tuple(sorted(kinds))
    )
    made = list(source.groups(seed))
    assert all(len({example.context_ids for example in group}) == 1 for group in made)
    before = {e.question: e for group in wrapped.groups(seed) for e in group}
    after = {e.question: e for group in made for e in group}
    assert len(after) == sum(map(len, made)) == len(before)
    contexts = {group[0].context_ids: group for group in wrapped.groups(seed)}
    for question, example in after.items():
        origin = before[question]
        if example.source == "made":
            assert example == origin
            continue
        assert (example.source, example.answer) == ("abstention", ABSTENTION_ANSWER)
        assert (example.choices, example.layers) == ((), origin.layers)
        if example.evidence == "read":
            assert "unrelated" in kinds
            assert example.context_ids != origin.context_ids
            read = {e.positions for e in contexts[example.context_ids]}
            assert example.positions in read
        else:
            assert example.evidence in kinds
            assert (example.context_ids, example.positions) == (
                origin.context_ids,
                origin.positions,
            )


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_share_and_the_kinds(share):
    source = Abstention(name="a", sources=(different(1500),), share=share)
    abstentions, others = turned(source)
    count = len(abstentions) + len(others)
    assert count == 3000
    assert abs(len(abstentions) - share * count) <= 4 * (count * share * (1 - share)) ** 0.5
    for kind in ("zero", "random", "read"):
        found = sum(example.evidence == kind for example in abstentions)
        expected = len(abstentions) / 3
        assert abs(found - expected) < 4 * (expected * 2 / 3) ** 0.5


def test_what_is_asked_of_two_texts_is_no_abstention_for_either():
    """Every second text is asked the same; such a question never meets another of them."""
    questions = tuple(("Is it a hint?",) if i % 2 else (f"What is {i}?",) for i in range(40))
    source = Abstention(name="a", sources=(Made("m", questions),), share=1.0, kinds=("unrelated",))
    abstentions, others = turned(source)
    assert not others
    for example in abstentions:
        if example.question == "Is it a hint?":
            assert example.context_ids[0] % 2 == 0
    assert any(example.question == "Is it a hint?" for example in abstentions)


def test_an_unrelated_text_is_of_another_group_and_stands_in_that_one():
    """The held-out split keeps groups whole, also the one whose text is borrowed."""
    questions = tuple((f"What is {i}?",) for i in range(12))
    keys = tuple(f"person {i // 3}" for i in range(12))
    source = Abstention(
        name="a", sources=(Made("m", questions, keys),), share=1.0, kinds=("unrelated",)
    )
    for example in turned(source)[0]:
        asked_of = int(example.question.split()[-1].rstrip("?"))
        read_from = example.context_ids[0]
        assert example.group == keys[read_from] != keys[asked_of]


@pytest.mark.parametrize("questions", [(("What?",),), (("What?",), ("What?",))])
def test_no_unrelated_text(questions):
    wrapped = Made("m", questions)
    with pytest.raises(DataError, match=r"no unrelated text for the question 'What\?'"):
        turned(Abstention(name="a", sources=(wrapped,), share=1.0, kinds=("unrelated",)))
    # Where there is another kind, that one is taken.
    abstentions, _ = turned(Abstention(name="a", sources=(wrapped,), share=1.0))
    assert {example.evidence for example in abstentions} <= {"zero", "random"}


def test_sources_take_turns():
    source = Abstention(
        name="a", sources=(different(2, 1, "x"), different(4, 1, "y")), share=1.0, kinds=("zero",)
    )
    order = [example.question[0] for group in source.groups(0) for example in group]
    assert order == ["x", "y", "x", "y", "y", "y"]


def test_context_prediction_is_never_asked_of_an_unrelated_text(tmp_path):
    (tmp_path / "a.txt").write_text("Anna lives in Paris. " * 20 + "\n" + "It is blue. " * 30)
    prediction = ContextPrediction(
        name="c",
        texts=TextSpec(data=tmp_path / "a.txt"),
        tokenizer=tiny.tokenizer(),
        layers=LayerChoice((1, 2, 3), "each"),
        num_tokens=(1, 5),
        num_positions=((1, 5),) * 20,
    )
    abstentions, _ = turned(Abstention(name="a", sources=(prediction,), share=1.0))
    assert {example.evidence for example in abstentions} == {"zero", "random"}
    with pytest.raises(DataError, match="'c' of unrelated texts"):
        Abstention(name="a", sources=(prediction,), share=1.0, kinds=("unrelated",))


@pytest.mark.parametrize(
    "options",
    [{"share": 0.0}, {"share": 1.1}, {"kinds": ()}, {"kinds": ("noise",)}, {"sources": ()}],
)
def test_settings_are_checked(options):
    defaults = {"sources": (different(2),), "share": 0.5}
    with pytest.raises(DataError, match="'a'"):
        Abstention(name="a", **(defaults | options))


def test_the_description_is_json_and_holds_what_is_wrapped():
    described = Abstention(name="a", sources=(different(2),), share=0.5).describe()
    assert json.loads(json.dumps(described))["sources"] == [{"kind": "made", "name": "made"}]
