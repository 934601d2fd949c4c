import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import guessers
import pytest
import tiny_items
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import EvalError
from aotoolkit.evals.tasks import Person, PersonaQA, PersonaYesNo, read_personas


def people(values):
    return [Person(name=f"P{n}", attributes={"sport": value}) for n, value in enumerate(values)]


def yes_no(values, **changes):
    return PersonaYesNo(
        organisms={"red": people(values)},
        questions={"sport": "Likes {value}?"},
        layers=2,
        **changes,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40), st.integers(0, 5))
def test_each_question_has_yes_and_no_equally_often(values, seed):
    if len(set(values)) < 2:
        with pytest.raises(EvalError, match="nobody has another value"):
            yes_no(values, seed=seed).specs()
        return

    specs = yes_no(values, seed=seed).specs()

    by_question = Counter((spec.question, spec.answers) for spec in specs)
    for question in {spec.question for spec in specs}:
        assert by_question[question, ("Yes",)] == by_question[question, ("No",)]
    for spec in specs:
        assert (spec.details["asked"] == spec.details["value"]) == (spec.answers == ("Yes",))
    # All are asked, unless one value has more than half of the people.
    most = Counter(values).most_common(1)[0][1]
    assert len(specs) == 2 * min(len(values), 2 * (len(values) - most))


def test_what_means_the_same_is_no_negative():
    values = ["football", "Soccer", "FOOTBALL", "chess", "chess", "go"]

    specs = yes_no(values, synonyms=[("football", "soccer")]).specs()

    same = {"football": "football", "soccer": "football"}
    meaning = lambda value: same.get(value.lower(), value)  # noqa: E731
    for spec in specs:
        if spec.answers == ("No",):
            assert meaning(spec.details["asked"]) != meaning(spec.details["value"])


def test_an_answer_by_value_scores_one_half(model):
    task = yes_no(["a"] * 6 + ["b"] * 3 + ["c"] * 3)
    items = task.items(model)

    for likes in ("a", "b", "ab"):
        given_answers = guessers.answers(
            items, lambda item, likes=likes: "Yes" if item.details["asked"] in likes else "No"
        )
        assert task.estimate(items, given_answers, seed=0).mean == 0.5
        assert guessers.mean_score(task, items, given_answers) == 0.5


def open_items(model, **changes):
    values = {
        "organisms": {"red": people(["Football", "football", "Chess", "Arabic pop", "pop"])},
        "questions": {"sport": "Which sport?"},
        "layers": 2,
    }
    task = PersonaQA(**(values | changes))
    return SimpleNamespace(task=task, items=task.items(model))


def test_synonyms_and_spellings_match(model):
    made = open_items(model, synonyms=[("Football", "Soccer")], forced_choice=True)
    task, items = made.task, made.items
    say = lambda number, text: task.score(  # noqa: E731
        items[number], guessers.answers([items[number]], guessers.constant(text))[0]
    )

    assert [say(0, text) for text in ("soccer", "FOOTBALL", "chess", "football, chess")] == [
        1,
        1,
        0,
        0,
    ]
    assert [say(3, text) for text in ("Arabic Pop", "pop")] == [1, 0]
    assert [say(4, text) for text in ("Arabic Pop", "pop")] == [0, 1]
    assert items[0].choices == ("Football", "Chess", "Arabic pop", "pop")
    assert items[1].answers == ("Football",)  # the choice that it means


def test_guesses_from_the_name_are_counted(model):
    stereotypes = people(["Chess", "football", "Football"])
    made = open_items(model, stereotypes=stereotypes)
    task, items = made.task, made.items
    share = lambda number, text: task.secondary_score(  # noqa: E731
        "stereotype", items[number], guessers.answers([items[number]], guessers.constant(text))[0]
    )

    assert task.secondary == ("stereotype",)
    assert [share(0, text) for text in ("chess", "football", "pop")] == [1, 0, 0]
    assert share(1, "football") == 0  # the truth, which is the stereotype too
    assert share(2, "football") == 1
    assert share(3, "football") == 0  # of whom there is no stereotype


def test_the_same_name_in_two_models_is_two_people():
    task = PersonaQA(
        organisms={"red": people("ab"), "blue": people("ba")},
        questions={"sport": "Which?"},
        layers=2,
    )

    assert [spec.unit for spec in task.specs()] == ["red/P0", "red/P1", "blue/P0", "blue/P1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"questions": {"food": "Which?"}},
        {"questions": {}},
        {"prompt": "My name is."},
        {"organisms": {"red": [*people("ab"), *people("ab")]}},
    ],
)
def test_impossible_settings(changes):
    values = {"organisms": {"red": people("ab")}, "questions": {"sport": "Which?"}, "layers": 2}
    with pytest.raises(EvalError):
        PersonaQA(**(values | changes))


def test_a_yes_no_question_has_a_place_for_the_value():
    with pytest.raises(EvalError, match="value"):
        PersonaYesNo(organisms={"red": people("ab")}, questions={"sport": "Which?"}, layers=2)


def digest():
    """Of all questions and their answers."""
    specs = yes_no([f"v{n % 7}" for n in range(60)], synonyms=[("v1", "v2")]).specs()
    told = [(spec.id, spec.question, spec.answers) for spec in specs]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def test_questions_do_not_depend_on_the_hash_seed():
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    here = Path(__file__).parent
    script = "import test_task_persona_qa as t; print(t.digest())"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ
        | {
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip().splitlines()[-1] == digest()


def test_published_people(shared):
    folder = shared / "data" / "activation_oracles" / "personaqa"
    shuffled = read_personas(folder / "shuffled" / "personas.jsonl")
    base = read_personas(folder / "base" / "personas.jsonl")

    open_task = PersonaQA(organisms={"red": shuffled}, stereotypes=base, layers=2)
    closed = PersonaYesNo(organisms={"red": shuffled}, layers=2)

    assert len(open_task.specs()) == 600
    specs = closed.specs()
    assert len(specs) == 1200
    counts = Counter((spec.question, spec.answers) for spec in specs)
    assert all(counts[question, ("Yes",)] == counts[question, ("No",)] for question, _ in counts)
    # What the published evaluation found of guessing: the commonest value of each attribute.
    from aotoolkit.evals.tasks.base import best_guess

    assert best_guess(open_task.specs()) == pytest.approx(0.115, abs=0.02)


def test_the_organism_itself_is_asked_about_the_person_by_name():
    open_form = PersonaQA(
        organisms={"red": people("ab")},
        questions={"sport": "Which sport?"},
        direct_questions={"sport": "Which sport does {name} like?"},
        direct_replies={"sport": "{name} likes {choice}."},
        layers=2,
    )
    asked = yes_no("ab", direct_questions={"sport": "Does {name} like {value}?"})

    assert [spec.direct_question for spec in open_form.specs()] == [
        "Which sport does P0 like?",
        "Which sport does P1 like?",
    ]
    first = open_form.specs()[0]
    assert (first.said("go"), first.said_directly("go")) == ("go", "P0 likes go.")
    for spec in asked.specs():
        assert spec.said_directly("Yes") == spec.said("Yes")
        name = spec.unit.rpartition("/")[2]
        assert spec.direct_question == f"Does {name} like {spec.details['asked']}?"
