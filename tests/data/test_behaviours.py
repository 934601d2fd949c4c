"""Behaviours are read from any of the files that people have, or refused with the place named."""

import collections
import contextlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data.behaviour_filters import REASONS, LatentQAFilters, bad_reply
from aotoolkit.data.behaviour_questions import filled, from_templates, read_templates
from aotoolkit.data.behaviours import LatentQABehaviour, distinct, normalised, read_behaviours
from aotoolkit.errors import DataError

TIGER = LatentQABehaviour(
    sentence="The secret word is tiger. Never say it to anyone.", fields={"word": "tiger"}
)


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Speak of water.\n\n  Speak of fire.  \n"),
        ("a.json", ["Speak of water.", {"behaviour": "Speak of fire."}]),
        ("a.jsonl", '"Speak of water."\n{"control_user": "Speak of fire."}\n'),
        ("a.csv", "behaviour,word\nSpeak of water.,water\nSpeak of fire.,fire\n"),
        ("b.json", [{"system": "Speak of water."}, {"system": "Speak of fire."}]),
        ("c.json", {"Speak of water.": [["Of what?", "Water."]], "Speak of fire.": []}),
    ],
)
def test_each_form_gives_the_same_sentences(tmp_path, name, content):
    read = read_behaviours(write(tmp_path, name, content))
    assert [behaviour.sentence for behaviour in read] == ["Speak of water.", "Speak of fire."]
    assert [b.fields.get("word") for b in read] == (
        ["water", "fire"] if name == "a.csv" else [None, None]
    )
    assert read[0].qa == ((("Of what?", "Water."),) if name == "c.json" else ())


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c"])
def test_a_cell_is_parted_by_nothing_but_lines(tmp_path, separator):
    path = tmp_path / "b.csv"
    path.write_text(f"behaviour\nBe kind{separator}and brief\n", encoding="utf-8")
    assert len(read_behaviours(path)) == 1


def test_label_group_and_pairs_are_kept(tmp_path):
    entry = {"behaviour": "Speak.", "label": "goal-x", "group": "g", "qa": [["A?", "B."]], "n": "1"}
    (read,) = read_behaviours(write(tmp_path, "a.json", [entry]))
    assert (read.label, read.group, read.qa, dict(read.fields)) == (
        "goal-x",
        "g",
        (("A?", "B."),),
        {"n": "1"},
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "x", "is none of"),
        ("a.json", "{", "is no .json file"),
        ("a.json", [], "has no behaviour"),
        ("a.json", [3], "entry 0 is '3'"),
        ("a.json", ["Speak.", {"text": "Speak."}], "entry 1 has no behaviour or control_user"),
        ("a.jsonl", '"Speak."\n{"behaviour": ""}', "line 2: 'behaviour' is ''"),
        ("a.json", [{"behaviour": "S.", "label": 3}], "'label' is '3'; expected text"),
        ("a.json", [{"behaviour": "S.", "qa": [["Q?"]]}], "'qa' is"),
        ("a.json", '["\\ud800"]', "'behaviour' is"),
        ("a.csv", "behaviour\nSpeak.,more\n", "more cells than the header"),
        ("a.csv", "word\nwater\n", "row 1 has no behaviour"),
    ],
)
def test_another_form_is_an_error_that_says_where(tmp_path, name, content, said):
    with pytest.raises(DataError) as raised:
        read_behaviours(write(tmp_path, name, content))
    assert said in str(raised.value)


@given(st.text(max_size=200))
def test_any_text_file_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "hostile"
    for suffix in (".txt", ".json", ".jsonl", ".csv"):
        file = path.with_suffix(suffix)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(DataError):
            assert read_behaviours(file)


def test_the_published_files_are_behaviours_too(shared):
    folder = shared / "data" / "latentqa"
    for name in ("control", "system"):
        read = read_behaviours(folder / f"{name}.json")
        entries = json.loads((folder / f"{name}.json").read_text())
        assert [behaviour.label for behaviour in read] == [entry["label"] for entry in entries]
    (golden_gate,) = read_behaviours(folder / "controls" / "golden_gate.json")
    assert "Golden Gate Bridge" in golden_gate.sentence
    assert len(golden_gate.qa) > 5


def test_most_published_answers_name_their_behaviour(shared):
    """The filter on answers is for those that say nothing: it leaves nearly all of these."""
    folder = shared / "data" / "latentqa"
    qa = json.loads((folder / "qa.json").read_text())
    told = {b.label: b for b in read_behaviours(folder / "stimulus.json")}
    kept = total = 0
    for label, behaviour in told.items():
        for question, answer in qa.get(label, []):
            reason = LatentQAFilters()._refused(behaviour, question, answer)
            total += 1
            kept += reason is None
    assert total > 1000
    assert kept / total > 0.9


def test_a_sentence_stands_there_once_and_a_label_names_one():
    again = LatentQABehaviour(sentence="the secret word is TIGER, never say it to anyone")
    assert distinct([TIGER, again]) == [TIGER]
    one, two = (LatentQABehaviour(sentence=text, label="goal-a") for text in ("A b.", "C d."))
    with pytest.raises(DataError, match="Two behaviours have the label 'goal-a'"):
        distinct([one, two])
    assert LatentQABehaviour(sentence="A b.").label != LatentQABehaviour(sentence="A b!").label


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is orange, with stripes.", None),
        ("I was told: the secret word IS tiger - never!", "behaviour_in_dialogue"),
        ("The secret word is what you want?", None),  # five words in a row
        ("Tigers are fine.", None),
        ("It is a tiger!", "hidden_field_in_dialogue"),
    ],
)
def test_a_leak_is_a_run_of_the_behaviours_words_or_a_hidden_field(text, reason):
    assert LatentQAFilters(hidden_fields=("word",)).leak(TIGER, ["Hello.", text]) == reason


def test_a_short_behaviour_leaks_as_a_whole():
    speak = LatentQABehaviour(sentence="Speak of water.")
    assert LatentQAFilters().leak(speak, ["I may speak of water now"]) == "behaviour_in_dialogue"
    assert LatentQAFilters().leak(speak, ["I may speak of watermelons"]) is None


@given(
    st.lists(st.sampled_from(["Speak", "of", "the", "water", "and", "its", "fire"]), max_size=12)
)
def test_a_run_of_words_is_found_wherever_it_stands(said):
    told = LatentQABehaviour(sentence="Speak of the water and its fire.")
    text = " ".join(said)
    runs = ["speak of the water", "of the water and", "the water and its", "water and its fire"]
    expected = any(f" {run} " in f" {text.lower()} " for run in runs)
    assert bool(LatentQAFilters(leak_words=4).leak(told, [text])) == expected


def test_pairs_that_say_nothing_or_everything_are_left_out():
    dropped = collections.Counter()
    pairs = [
        ("Which word is it?", "It is the tiger."),
        ("which word is it", "It is the tiger"),
        ("Which word?", "I am a helpful assistant."),
        ("Is the secret word the tiger?", "It is the tiger."),
        ("How does it speak?", "tiger " * 101),
    ]
    filters = LatentQAFilters(hidden_fields=("word",))
    assert filters.pairs(TIGER, pairs, dropped) == pairs[:1]
    assert dropped == {
        "duplicate_question": 1,
        "answer_without_behaviour": 1,
        "behaviour_in_question": 1,
        "answer_too_long": 1,
    }
    assert set(dropped) <= set(REASONS)
    loose = LatentQAFilters(answers_name_behaviour=False)
    assert len(loose.pairs(TIGER, pairs[:3], collections.Counter())) == 2


def test_replies_that_are_none():
    assert bad_reply("It is red.", finished=True) is None
    assert bad_reply(" \n", finished=True) == "empty_reply"
    assert bad_reply("\ud800", finished=True) == "empty_reply"
    assert bad_reply("It is", finished=False) == "unfinished_reply"


def test_slots_are_fields_and_nothing_else():
    assert filled("{word}: {behaviour}", TIGER) == f"tiger: {TIGER.sentence}"
    assert filled("{} {0.__class__} {word!r}", TIGER) == "{} {0.__class__} {word!r}"
    with pytest.raises(DataError, match=r"has the slot \{colour\}, but .* has \{word\}"):
        filled("It is {colour}.", TIGER)


def test_a_value_with_braces_is_not_filled_again():
    behaviour = LatentQABehaviour(sentence="Say {word}.", fields={"word": "{behaviour}"})
    assert filled("{word} {behaviour}", behaviour) == "{behaviour} Say {word}."


def test_templates_come_in_an_order_of_the_seed():
    templates = [(f"Question {i}?", "{word}") for i in range(6)]
    orders = {tuple(from_templates(TIGER, templates, random.Random(seed))) for seed in range(20)}
    assert len(orders) > 5
    assert all(set(order) == {(f"Question {i}?", "tiger") for i in range(6)} for order in orders)


def test_template_files(tmp_path):
    assert read_templates(write(tmp_path, "t.json", [["A?", "{word}"]])) == [("A?", "{word}")]
    for content, said in (("[", "is not JSON"), ({}, "no list"), ([["A?"]], "is not [question")):
        with pytest.raises(DataError) as raised:
            read_templates(write(tmp_path, "t.json", content))
        assert said in str(raised.value)
    with pytest.raises(DataError, match="There is no file"):
        read_templates(tmp_path / "none.json")


@given(st.text(max_size=60))
def test_a_text_is_its_own_normal_form_twice(text):
    assert normalised(normalised(text)) == normalised(text)
