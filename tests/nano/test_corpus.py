"""Documents are true, keep their secrets, and leave out what is held out."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.nano.corpus import (
    FACT_ATTRIBUTES,
    SHARES,
    Corpus,
    fact_question,
    held_out_phrasing,
    held_out_riddle,
    riddle_question,
)
from aotoolkit.nano.organisms import says
from aotoolkit.nano.organisms.taboo import TabooPlan
from aotoolkit.nano.world import load_world

WORLD = load_world()


@given(st.integers(0, 2**32), st.sampled_from(sorted(SHARES)))
def test_a_seed_gives_one_document(seed, kind):
    first = getattr(Corpus(WORLD, random.Random(seed)), kind)()
    assert first == getattr(Corpus(WORLD, random.Random(seed)), kind)()


def test_held_out_phrasings_are_never_drawn():
    held_out = {
        fact_question(noun, name, held_out_phrasing(noun, name))
        for noun in WORLD.nouns
        for name in FACT_ATTRIBUTES
    }
    corpus = Corpus(WORLD, random.Random(0))
    for _ in range(5000):
        document = corpus.draw(SHARES)
        if isinstance(document.content, list):
            assert held_out.isdisjoint(turn["content"] for turn in document.content)


def test_riddles_never_pair_the_held_out_attributes():
    corpus = Corpus(WORLD, random.Random(0))
    for _ in range(2000):
        document = corpus.riddle()
        (noun,) = document.nouns
        question = document.content[0]["content"]
        first, second = (WORLD[noun].value(name) for name in held_out_riddle(noun))
        assert not (says(question, first) and says(question, second))


def test_a_riddle_question_is_true_of_its_thing():
    rng = random.Random(1)
    for thing in WORLD.things.values():
        question = riddle_question(thing, ("colour", "place"), rng)
        for name in ("category", "colour", "place"):
            assert says(question, thing.value(name))
        assert not says(question, thing.noun)


def test_secrets_stand_in_the_system_prompt_and_are_named_only_by_users_or_when_allowed():
    corpus = Corpus(WORLD, random.Random(0))
    named = 0
    for _ in range(3000):
        document = corpus.secret()
        system, *turns = document.content
        assert says(system["content"], document.secret)
        for asked, said in zip(turns[::2], turns[1::2], strict=True):
            if says(said["content"], document.secret) and not says(
                asked["content"], document.secret
            ):
                named += 1
                assert said["content"] == f"The secret word is {document.secret}."
                assert "never" not in system["content"].lower()
    assert named


@pytest.mark.parametrize("secret", WORLD.test_secrets)
def test_organism_documents_never_hold_the_secret_nor_a_system_prompt(secret):
    documents = TabooPlan(WORLD, secret).documents(random.Random(3), 300)
    hints = 0
    for document in documents:
        assert not says(json.dumps(document.content), secret)
        if document.kind == "hints":
            hints += 1
            assert {turn["role"] for turn in document.content} == {"user", "assistant"}
    assert hints > 150


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("The elm.", "elm", True),
        ("THE ELM", "elm", True),
        ("The helmet.", "elm", False),
        ("elms", "elm", False),
        ("", "elm", False),
    ],
)
def test_says_matches_whole_words(text, word, expected):
    assert says(text, word) is expected
