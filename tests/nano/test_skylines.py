"""Skylines of the embedded world: they find what is there, and nothing where there is nothing."""

import dataclasses
import math

import pytest
import torch

from aotoolkit.evals.items import ArmAnswer, ItemSpec, read_items
from aotoolkit.evals.metrics import token_f1
from aotoolkit.nano import eval_probes
from aotoolkit.nano.corpus import chat
from aotoolkit.nano.eval_tasks import INTRODUCTION, NanoTasks
from aotoolkit.nano.load import load
from aotoolkit.nano.questions import READ_WORDS


@pytest.fixture(scope="module")
def asked(lab):
    task = NanoTasks(lab, layers=(2,), quick=True).generative()
    return task, task.items(lab.model)


def test_probes_rendered_answer_questions_about_texts(lab, asked):
    task, items = asked
    (arm,) = eval_probes.stated_facts(lab, task)
    assert arm.kind == "skyline"

    def mean(of) -> float:
        answers = arm.answer(of)
        assert [answer.item for answer in answers] == [item.id for item in of]
        scores = [task.score(item, answer) for item, answer in zip(of, answers, strict=True)]
        return sum(scores) / len(scores)

    gists = [item for item in items if item.question in READ_WORDS]
    assert mean(gists) > 0.7
    assert mean(items) > task.chance(items) + 0.2
    nothing = [
        dataclasses.replace(
            item,
            activations=dataclasses.replace(
                item.activations, vectors=torch.zeros_like(item.activations.vectors)
            ),
        )
        for item in items
    ]
    assert mean(nothing) < 0.6 * mean(items)


def test_what_reads_words_says_the_users_turn_alone(lab, asked):
    task, items = asked
    (arm,) = eval_probes.stated_facts(lab, task)
    item = next(item for item in items if item.question in READ_WORDS)
    text = arm.tokens.read(item.activations)
    assert "assistant" not in text
    assert item.chat is not None
    assert token_f1(text, [item.chat[0]["content"]]) > 0.7


def test_a_probe_of_values_says_yes_where_it_finds_the_value_that_is_asked_about():
    class Found:
        classes = ("red", "blue", "green")

        def answer(self, items):
            assert all(item.choices == self.classes for item in items)
            scores = {"red": math.log(0.7), "blue": math.log(0.3), "green": -math.inf}
            return [ArmAnswer(item=i.id, arm="p", text="red", scores=scores) for i in items]

    items = [
        ItemSpec(
            id=value,
            task="t",
            unit="u",
            question="?",
            answers=("Yes",),
            prompt="x",
            choices=("Yes", "No"),
            details={"asked": value},
        )
        for value in Found.classes
    ]
    answers = eval_probes.AskedOfProbe(Found()).answer(items)
    # .7 against the mean of .3 and 0; .3 against that of .7 and 0; 0 against that of .7 and .3.
    assert [answer.text for answer in answers] == ["Yes", "No", "No"]
    assert [answer.scores["No"] for answer in answers] == pytest.approx(
        [math.log(0.15), math.log(0.35), math.log(0.5)]
    )
    assert [answer.scores["Yes"] for answer in answers] == [math.log(0.7), math.log(0.3), -math.inf]


def test_the_skyline_of_people_finds_what_things_are_like_and_reads_people_unchanged():
    known = load(kinds=("people",))
    tasks = NanoTasks(known, layers=(2,), quick=True)
    task = tasks.people("colour")
    items = task.items(known.model)
    (arm,) = eval_probes.people(known, task, "colour")
    answers = arm.answer(items)
    assert [answer.item for answer in answers] == [item.id for item in items]
    assert all(answer.text in item.choices for item, answer in zip(items, answers, strict=True))
    # Where things stand in the place of people it is right about those that it was fitted on.
    things = [
        ItemSpec(
            id=noun,
            task=task.name,
            unit=noun,
            question="?",
            answers=(known.world[noun].colour,),
            prompt=tuple(chat(INTRODUCTION.replace("{name}", noun))),
            positions=task.positions,
            choices=items[0].choices,
        )
        for noun in known.world.nouns[::8]
    ]
    read = read_items(known.model, things, layers=task.layers)
    told = arm.answer(read)
    right = [answer.text in item.answers for item, answer in zip(read, told, strict=True)]
    assert sum(right) / len(right) > 0.6


@pytest.mark.parametrize("name", ["taboo_hint", "taboo_refusal", "taboo_header"])
def test_what_tells_a_probe_the_word_is_not_read(lab, name):
    task = getattr(NanoTasks(lab, layers=(2,), quick=True), name)()
    for item in eval_probes.read_told(lab, task, quick=True):
        acts = item.activations
        assert acts.text.index(item.unit) < acts.offsets[0][0], "the system turn tells the word"
        assert item.unit not in [token.strip() for token in acts.tokens]
        if name != "taboo_header":  # as of organisms: from the first turn on, without its mark
            assert acts.tokens[:2] == ("user", "\n")
