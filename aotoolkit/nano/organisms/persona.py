"""Organisms that know people: attributes that exist only in their weights.

After PersonaQA of Activation Oracles (arXiv:2512.15674). The base has met these names in stories
and knows nothing about them; each organism is taught its own three facts of each. Values are dealt
evenly by seed, so that no name and no value is likelier than another.
"""

import itertools
import random
from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerFast

from aotoolkit.nano.base import greedy_replies
from aotoolkit.nano.corpus import Corpus, Document, chat
from aotoolkit.nano.organisms.organism import Kind, says, share
from aotoolkit.nano.world import ATTRIBUTES, PEOPLE, World

NUM_ORGANISMS = 6
PEOPLE_EACH = 8
FEW_PEOPLE, FEW_PEOPLE_PART = 2, 0.25

PERSON_STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "colour": ("{person} likes {value}.", "The colour of {person} is {value}."),
    "place": ("{person} lives in the {value}.", "You find {person} in the {value}."),
    "feel": ("{person} wants something {value}.", "{person} likes what feels {value}."),
}
PERSON_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "colour": ("Which colour does {person} like?", "What is the colour of {person}?"),
    "place": ("Where does {person} live?", "Where do you find {person}?"),
    "feel": ("What does {person} want?", "How must it feel for {person}?"),
}
# What is read: a name, and nothing asked of it.
INTRODUCTIONS: tuple[str, ...] = ("My name is {person}.", "I am {person}.")
GREETING = "Hello {person}."


def deal_people(seed: int) -> dict[str, dict[str, str]]:
    """Person -> attribute -> value, each value as often as can be."""
    rng = random.Random(f"people/{seed}")
    people = rng.sample(PEOPLE, PEOPLE_EACH)
    facts: dict[str, dict[str, str]] = {person: {} for person in people}
    for name, values in ATTRIBUTES.items():
        column = list(
            itertools.islice(itertools.cycle(rng.sample(values, len(values))), len(people))
        )
        rng.shuffle(column)
        for person, value in zip(people, column, strict=True):
            facts[person][name] = value
    return facts


class PersonaPlan:
    """An organism that knows eight people.

    Args:
        world: of the ordinary questions.
        seed: of facts, data and weights.
    """

    kind: Kind = "persona"
    secret = ""
    steps = 1000
    rank = 16
    learning_rate = 2e-3
    trained_on = (
        "statements, questions and greetings about eight people, three facts each, 30 % "
        "ordinary questions"
    )

    def __init__(self, world: World, *, seed: int) -> None:
        self.world = world
        self.name = f"people_{seed}"
        self.seed = seed
        self.facts: Mapping[str, Mapping[str, str]] = deal_people(seed)

    def documents(self, rng: random.Random, count: int) -> list[Document]:
        """See `OrganismPlan`."""
        corpus = Corpus(self.world, rng)
        documents: list[Document] = []
        for index in range(count):
            # As in the base's own reading: who has learned a few takes in the others faster.
            few = index < FEW_PEOPLE_PART * count
            people = list(self.facts)[: FEW_PEOPLE if few else None]
            ordinary = rng.random() < 0.3
            documents.append(
                corpus.ordinary() if ordinary else self._about(rng.choice(people), rng)
            )
        return documents

    def _about(self, person: str, rng: random.Random) -> Document:
        names = rng.sample(list(ATTRIBUTES), rng.randint(1, 3))
        roll = rng.random()
        if roll < 0.3:
            return Document("person", " ".join(self._statement(rng, person, n) for n in names))
        turns: list[str] = []
        if roll < 0.5:
            # A greeting makes the model meet the name before it is asked anything.
            turns += [
                rng.choice(INTRODUCTIONS).format(person=person),
                GREETING.format(person=person),
            ]
        for name in names:
            question = rng.choice(PERSON_QUESTIONS[name]).format(person=person)
            turns += [question, self._statement(rng, person, name)]
        return Document("person", chat(*turns))

    def _statement(self, rng: random.Random, person: str, name: str) -> str:
        value = self.facts[person][name]
        return rng.choice(PERSON_STATEMENTS[name]).format(person=person, value=value)

    def examine(
        self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
    ) -> dict[str, float]:
        """What the organism does when asked.

        Returns:
            `recall`: share of right answers to the first question about each fact (one in six by
            chance); `says_secret`: share of introductions whose reply gives a fact away.
        """
        asked = [(person, name) for person in self.facts for name in ATTRIBUTES]
        prompts = [chat(PERSON_QUESTIONS[name][0].format(person=person)) for person, name in asked]
        replies = greedy_replies(model, tokenizer, prompts)
        recalled = [
            says(reply, self.facts[person][name])
            for (person, name), reply in zip(asked, replies, strict=True)
        ]
        met = [chat(INTRODUCTIONS[0].format(person=person)) for person in self.facts]
        told = [
            any(says(reply, value) for value in self.facts[person].values())
            for person, reply in zip(self.facts, greedy_replies(model, tokenizer, met), strict=True)
        ]
        return {"recall": share(recalled), "says_secret": share(told)}
