"""Questions about what comes after: kept where the words before it do not answer them."""

import json
import re

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data import Example, LayerChoice
from aotoolkit.data.source import text_group
from aotoolkit.data.split_qa import (
    SplitItem,
    SplitQA,
    read_split_qa,
    same_answer,
    text_hardness,
    write_split_qa,
)
from aotoolkit.errors import ContextLengthError, DataError
from aotoolkit.tracing import TracedModel

LAYERS = LayerChoice((1, 2))
CHAT = ({"role": "user", "content": "Give me a hint."},)
REPLIED = (*CHAT, {"role": "assistant", "content": "It is blue."})
ITEMS = [
    SplitItem(prefix=CHAT, question="What comes?", answer="water", group="a"),
    SplitItem(prefix=CHAT, question="Who comes?", answer="Anna", group="a"),
    SplitItem(prefix=REPLIED, question="What comes?", answer="Paris", group="b"),
    SplitItem(prefix="My name is Anna and I live in", question="Where?", answer="In Paris."),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def reader() -> TracedModel:
    return TracedModel(tiny.model(), tiny.tokenizer())


def source(items=ITEMS, **options) -> SplitQA:
    defaults = {"name": "split", "tokenizer": tiny.tokenizer(), "layers": LAYERS}
    return SplitQA(items=items, **(defaults | options))


def test_what_the_reader_gets_wrong_is_hard(reader):
    said = [one.reader_answer for one in text_hardness(ITEMS, reader, progress=False)]
    given = [
        SplitItem(prefix=item.prefix, question=item.question, answer=answer or item.answer)
        for item, answer in zip(ITEMS[:2], said[:2], strict=True)
    ] + ITEMS[2:]
    found = text_hardness(given, reader, correct=lambda a, b: a == b, progress=False)
    assert [one.correct for one in found] == [bool(said[0]), bool(said[1]), False, False]
    assert [one.item.reader_answer for one in found] == said
    assert {one.item.reader for one in found} == {reader.name}


@pytest.mark.parametrize("chat", [True, False])
def test_batches_give_the_answers_of_one_at_a_time(chat):
    model, tokenizer = tiny.model(), tiny.tokenizer(chat=chat)
    alone = text_hardness(ITEMS, model, tokenizer=tokenizer, batch_size=1, progress=False)
    batched = text_hardness(ITEMS, model, tokenizer=tokenizer, batch_size=3, progress=False)
    assert [one.reader_answer for one in alone] == [one.reader_answer for one in batched]
    assert [one.item.question for one in batched] == [item.question for item in ITEMS]


def test_the_reader_sees_the_prefix_and_the_question_and_no_answer(reader, monkeypatch):
    prompts = []
    generate = reader.generate_ids

    def spy(ids, mask, **options):
        prompts.extend(reader.tokenizer.batch_decode(ids))
        assert options["do_sample"] is False
        return generate(ids, mask, **options)

    monkeypatch.setattr(reader, "generate_ids", spy)
    item = SplitItem(prefix=REPLIED, question="{prefix} {x}?", answer="SECRET")
    text_hardness([item], reader, progress=False)
    assert "user: Give me a hint.\n\nassistant: It is blue." in prompts[0]
    assert "{prefix} {x}?" in prompts[0]
    assert "SECRET" not in prompts[0]
    assert prompts[0].endswith("<|im_start|>assistant\n")


def test_examples_of_any_source_can_be_put_to_a_reader(reader):
    tokenizer = tiny.tokenizer()
    examples = [example for group in source().groups(0) for example in group]
    found = text_hardness(examples, reader, context_tokenizer=tokenizer, progress=False)
    assert [one.item for one in found] == examples
    with pytest.raises(DataError, match="context_tokenizer"):
        text_hardness(examples, reader, progress=False)


def test_readers_that_cannot_read(reader):
    with pytest.raises(DataError, match="tokenizer"):
        text_hardness(ITEMS, tiny.model())
    with pytest.raises(DataError, match="batch_size is 0"):
        text_hardness(ITEMS, reader, batch_size=0)
    long = SplitItem(prefix="water " * 300, question="What?", answer="a")
    with pytest.raises(ContextLengthError, match="context of the reader"):
        text_hardness([*ITEMS, long], reader)
    assert text_hardness([], reader, progress=False) == []


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        ("The answer is: Paris!", "paris", True),
        ("Paris", "London", False),
        ("Parisian", "Paris", False),
        ("", "Paris", False),
        ("no, not yes", "Yes.", True),
        ("the cat", "a cat", True),
        ("It will talk about its travels in Spain", "It will tell of its travels in Spain", True),
        ("It is a", "It will tell of its travels in Spain", False),
        ("It is A 0", "A", True),
        ("...", "...", True),
        ("!", "...", False),
    ],
)
def test_same_answer(given, right, same):
    assert same_answer(given, right) is same


@given(TEXT, TEXT, TEXT)
def test_an_answer_within_more_words_is_the_same(before, answer, after):
    assert same_answer(answer, answer)
    if re.search(r"\w", answer):
        assert same_answer(f"{before} {answer} {after}", answer)


def test_questions_of_one_prefix_share_a_context():
    groups = list(source().groups(0))
    assert sorted(map(len, groups)) == [1, 1, 2]
    for group in groups:
        assert len({example.context_ids for example in group}) == 1
    assert list(source().groups(1)) == list(source().groups(1)) != list(source().groups(2))


def test_contexts_end_where_the_prefix_does():
    tokenizer = tiny.tokenizer()
    texts = {
        e.question + e.answer: tokenizer.decode(e.context_ids)
        for g in source().groups(0)
        for e in g
    }
    assert texts["What comes?water"].endswith("hint.<|im_end|>\n<|im_start|>assistant\n")
    assert texts["What comes?Paris"].endswith("blue.<|im_end|>\n")
    assert texts["Where?In Paris."] == "My name is Anna and I live in"


def test_positions_are_all_or_a_few():
    for example in (e for seed in range(20) for g in source().groups(seed) for e in g):
        whole = tuple(range(1, len(example.context_ids)))
        assert example.positions == whole or len(example.positions) <= 3
    full = [e.positions for g in source(full_share=1.0).groups(0) for e in g]
    assert all(positions[0] == 1 for positions in full)


def test_layers_are_each_asked():
    examples = [e for g in source(layers=LayerChoice((1, 2), "each")).groups(0) for e in g]
    assert len(examples) == 2 * len(ITEMS)
    assert {e.layers for e in examples} == {(1,), (2,)}


def test_no_questions_left():
    with pytest.raises(DataError, match="no question"):
        source(items=[])


def test_describe_says_who_read_and_no_path(reader):
    found = text_hardness(ITEMS[:2], reader, progress=False)
    items = [
        *(one.item for one in found),
        ITEMS[3],
        SplitItem(prefix="a", question="b", answer="c", reader="/models/mine/model"),
    ]
    described = json.loads(json.dumps(source(items).describe()))
    assert described["readers"] == {reader.name: 2, "none": 1, "model": 1}
    assert described["questions"] == 4


ITEM = st.builds(
    SplitItem,
    prefix=TEXT.filter(str.strip)
    | st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": TEXT.filter(str.strip)}
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    question=TEXT.filter(str.strip),
    answer=TEXT.filter(str.strip),
    group=TEXT,
    reader=TEXT,
    reader_answer=TEXT,
)


@given(st.lists(ITEM, min_size=1, max_size=4))
def test_items_come_back_from_their_file(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("split") / "items.jsonl"
    write_split_qa(path, items)
    assert read_split_qa(path) == items
    assert [file.name for file in path.parent.iterdir()] == ["items.jsonl"]


def test_a_line_may_hold_several_questions(tmp_path):
    line = {"prefix": list(CHAT), "qa": [["What comes?", "water"], ["Who comes?", "Anna"]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line | {"group": "a"}) + "\n\n")
    assert read_split_qa(tmp_path / "a.jsonl") == ITEMS[:2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON lines"),
        ("\n", "no line with a question"),
        ("[]", "line 1 is .*expected an object"),
        ('{"prefix": "a"}', "'qa' is"),
        ('{"prefix": "a", "qa": []}', "'qa' is"),
        ('{"prefix": "a", "qa": [["q"]]}', "two texts"),
        ('{"prefix": "a", "qa": [["q", " "]]}', "two texts"),
        ('{"prefix": "a", "qa": [["q", 3]]}', "two texts"),
        ('{"prefix": " ", "qa": [["q", "a"]]}', "'prefix' is"),
        ('{"prefix": [], "qa": [["q", "a"]]}', "'prefix' is"),
        ('{"prefix": 3, "qa": [["q", "a"]]}', "'prefix' is"),
        ('{"prefix": [{"role": "user"}], "qa": [["q", "a"]]}', "'role' and 'content'"),
        ('{"prefix": "\\ud800", "qa": [["q", "a"]]}', "'prefix' is"),
        ('{"prefix": "a", "qa": [["q", "a"]], "group": 3}', "'group' is 3"),
    ],
)
def test_lines_in_another_form(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_split_qa(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no file"):
        read_split_qa(tmp_path / "b.jsonl")


def test_an_example_is_what_training_takes():
    example = next(iter(source().groups(0)))[0]
    assert isinstance(example, Example)
    assert example.source == "split"


def test_a_text_stands_on_one_side_of_the_held_out_split():
    examples = [example for group in source().groups(0) for example in group]
    assert all(example.other_groups for example in examples)
    of_chat = {e.other_groups for e in examples if e.group == "a"}
    assert of_chat == {(text_group(CHAT),)}
