import json

import pytest

from aotoolkit.errors import DataError
from aotoolkit.evals.tasks import (
    read_hidden_prompts,
    read_lines,
    read_personas,
    read_predicate,
    read_published_predicates,
    read_questions,
    read_text_questions,
)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines(tmp_path):
    path = write(tmp_path, "p.txt", "\ufeffGive me a hint!\r\n\n  What is it?  ")

    assert read_lines(path) == ("Give me a hint!", "What is it?")


@pytest.mark.parametrize(
    ("content", "message"), [("", "empty"), ("\n \n", "empty"), (b"\xff\xfe", "not UTF-8")]
)
def test_hostile_lines(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_lines(write(tmp_path, "p.txt", content))


def test_absent_files(tmp_path):
    for read in (read_lines, read_personas, read_questions):
        with pytest.raises(DataError, match="no file"):
            read(tmp_path / "absent")
    for read in (read_hidden_prompts, read_text_questions, read_published_predicates):
        with pytest.raises(DataError, match="has no"):
            read(tmp_path)


def test_personas(tmp_path):
    lines = [
        {"id": "p1", "variant": "v", "name": "Anna", "country": "Chad", "sport": "Go"},
        {"name": "Ben", "sport": "Go"},
    ]
    path = write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")

    anna, ben = read_personas(path)

    assert (anna.name, anna.attributes) == ("Anna", {"country": "Chad", "sport": "Go"})
    assert ben.attributes == {"sport": "Go"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "Line 1"),
        ('{"country": "Chad"}', "name"),
        ('{"name": "Anna"}', "attributes"),
        ('{"name": "Anna", "country": 3}', "country"),
        ("[" * 100_000, "Line 1"),
        ("", "empty"),
    ],
)
def test_hostile_personas(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_personas(write(tmp_path, "p.jsonl", line))


QUESTIONS = json.dumps({"a": ["Is it {}?", "Is it so?"], "b": {"yes": ["Is it?"]}, "c": []})


def test_questions(tmp_path):
    path = write(tmp_path, "paraphrases.json", QUESTIONS)

    assert read_questions(path, "a", label="red") == ("Is it red?", "Is it so?")
    assert read_questions(path, "b", "yes") == ("Is it?",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("a",), "place for a label"),
        (("d",), r"no key 'd'"),
        (("b",), "list of questions"),
        (("b", "no"), r"under \['b'\]"),
        (("a", "x"), "list"),
        (("c",), "list of questions"),
    ],
)
def test_hostile_questions(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path, "paraphrases.json", QUESTIONS), *keys)


def test_predicate(tmp_path):
    path = write(tmp_path, "cities.csv", 'statement,label\n"It is, so.",1\nIt is not.,0\n')

    found = read_predicate(path, questions=["Is it true?"])

    assert (found.name, found.positives, found.negatives) == (
        "cities",
        ("It is, so.",),
        ("It is not.",),
    )
    with pytest.raises(DataError, match="labels"):
        read_predicate(path, questions=["?"], positive="true")


def test_latentqa(tmp_path):
    qa = {
        "persona-a": [["Who?", "A bard."], ["How?", "In verse."]],
        "sqa-b": [["What?", "Rain."], ["Why?", "Clouds."]],
    }
    write(tmp_path, "qa.json", json.dumps(qa))
    write(
        tmp_path,
        "system.json",
        json.dumps(
            [
                {"label": "persona-a", "system": "Be a bard.", "stimulus_user": "Hi"},
                {"label": "unknown", "system": "x", "stimulus_user": "y"},
            ]
        ),
    )
    write(
        tmp_path,
        "control.json",
        json.dumps([{"label": label, "control_user": f"{label} text"} for label in qa]),
    )

    (hidden,) = read_hidden_prompts(tmp_path)
    questions = read_text_questions(tmp_path)

    assert (hidden.label, hidden.system, hidden.question, hidden.answer) == (
        "persona-a",
        "Be a bard.",
        "Who?",
        "A bard.",
    )
    assert hidden.turns == ({"role": "user", "content": "Hi"},)
    assert [(q.kind, q.question, q.answers) for q in questions] == [
        ("gist", "Who?", ("A bard.",)),
        ("fact", "What?", ("Rain.",)),
        ("fact", "Why?", ("Clouds.",)),
    ]
