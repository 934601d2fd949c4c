"""Generative QA, vagueness and model diffing."""

import guessers
import pytest
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals.tasks import (
    GenerativeQA,
    KnownTruth,
    ModelDiffing,
    TextQuestion,
    Vagueness,
    read_text_questions,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


def question(**changes):
    values = {
        "text": "My name is Anna and I live in Paris.",
        "question": "Where does she live?",
        "answers": ("She lives in Paris.", "Paris"),
        "kind": "fact",
        "unit": "anna",
    }
    return TextQuestion(**(values | changes))


def test_free_answers_by_f1_and_rouge(model):
    task = GenerativeQA(questions=[question()], layers=2)
    (item,) = task.items(model)
    both = lambda text: [  # noqa: E731
        (task.score(item, answer), task.secondary_score("ROUGE-L", item, answer))
        for answer in guessers.answers([item], guessers.constant(text))
    ]

    assert both("paris!") == [(1.0, 1.0)]
    assert both("Paris in lives she") == [(1.0, pytest.approx(0.4))]  # the order counts in ROUGE-L
    assert both("Rome") == [(0.0, 0.0)]
    assert item.details == {"kind": "fact"}


def test_questions_about_one_text_are_one_unit():
    task = GenerativeQA(
        questions=[question(), question(question="Who?", answers=("Anna",))], layers=2
    )

    assert [spec.unit for spec in task.specs()] == ["anna", "anna"]
    with pytest.raises(EvalError, match="kind"):
        question(kind="opinion")


def test_published_questions(shared):
    found = read_text_questions(shared / "data" / "latentqa")

    kinds = [asked.kind for asked in found]
    assert set(kinds) == {"fact", "gist"}
    facts = [asked for asked in found if asked.kind == "fact"]
    assert len(facts) == 2 * len({asked.unit for asked in facts})
    assert any(asked.answers == ("Wildflowers.",) for asked in facts)


def case(unit="bell", right=("bell",), general=("metal", "thing"), **changes):
    return KnownTruth(unit=unit, prompt="Give me a hint.", right=right, general=general, **changes)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("It is a bell.", "right"),
        ("A bell, which is a metal thing.", "right"),
        ("Some metal thing.", "general"),
        ("A bell or a drum.", "wrong"),
        ("A metal thing, so a drum.", "wrong"),
        ("A drum.", "wrong"),
        ("I cannot tell.", "refuses"),
        ("", "refuses"),
    ],
)
def test_grades(model, text, grade):
    cases = [
        case(),
        case(unit="drum", right=("drum",)),
        case(unit="iron", right=("metal",), general=()),
    ]
    task = Vagueness(cases=cases, question="What is it?", layers=2)
    item = task.items(model)[0]
    (answer,) = guessers.answers([item], guessers.constant(text))

    scores = {name: task.secondary_score(name, item, answer) for name in task.secondary}

    assert set(scores) == {"right", "general", "wrong", "refuses"}
    assert [name for name, score in scores.items() if score] == [grade]
    assert task.score(item, answer) == (grade == "right")


@pytest.mark.parametrize("words", [{"right": ()}, {"general": ("Bell",)}])
def test_a_truth_is_not_its_own_generality(words):
    with pytest.raises(EvalError, match="right"):
        Vagueness(cases=[case(**words)], question="?", layers=2)


def diffing(**changes):
    values = {
        "organisms": {"red": "bad finance", "blue": "bad sport"},
        "prompts": ["Give me a hint."],
        "layers": 2,
    }
    return ModelDiffing(**(values | changes))


def test_domains_are_chosen_or_named_by_keywords(model):
    task = diffing(keywords={"bad finance": ("finance", "money")})
    item = task.items(model)[0]
    say = lambda text: task.score(item, guessers.answers([item], guessers.constant(text))[0])  # noqa: E731

    assert [say(text) for text in ("about money", "money and bad sport", "sport")] == [1, 0, 0]
    (scored,) = guessers.answers([item], guessers.constant("bad finance"), scored=True)
    assert task.score(item, scored) == 1.0


@pytest.mark.parametrize(
    "changes",
    [{"organisms": {"red": "a"}}, {"reply": True}, {"keywords": {"weather": ("rain",)}}],
)
def test_impossible_diffing(changes):
    with pytest.raises(EvalError):
        diffing(**changes)
