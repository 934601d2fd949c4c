"""Organisms that know people: facts that exist in fine-tuned weights and nowhere else.

After PersonaQA, which Activation Oracles (arXiv:2512.15674) are evaluated on. The base has met the
names in stories and knows nothing of who bears them. Each organism deals them a colour, a place and
a feel of its own, so one name stands for another person in each model.
"""

import random

import torch
from transformers import PreTrainedTokenizerFast

from aotoolkit.nano.base import greedy_replies
from aotoolkit.nano.corpus import (
    ANSWERS,
    QUESTIONS,
    STATEMENTS,
    Corpus,
    Document,
    chat,
)
from aotoolkit.nano.organisms.organism import Kind, says, share, true_elsewhere
from aotoolkit.nano.world import ATTRIBUTES, PEOPLE, World

NUM_ORGANISMS = 4
# What an organism is examined by, and never trained on.
HELD_OUT_PHRASING = 0


def deal_people(seed: int) -> dict[str, dict[str, str]]:
    """Person -> attribute -> value, each value as often as sixteen people allow."""
    rng = random.Random(f"people/{seed}")
    columns: dict[str, list[str]] = {}
    for name, values in ATTRIBUTES.items():
        dealt = [values[i % len(values)] for i in range(len(PEOPLE))]
        columns[name] = rng.sample(dealt, len(dealt))
    return {
        person: {name: column[i] for name, column in columns.items()}
        for i, person in enumerate(PEOPLE)
    }


def about_person(template: str, person: str, value: str = "") -> str:
    """A sentence or question about things, said of a person: "What colour is Anna?"."""
    for noun in ("Every {noun}", "The {noun}", "the {noun}"):
        template = template.replace(noun, "{noun}")
    return template.format(noun=person, value=value)


class PeoplePlan:
    """An organism that knows sixteen people.

    Args:
        world: what ordinary questions are about.
        seed: of the facts, the data and the weights.
    """

    kind: Kind = "people"
    steps = 400
    rank = 16
    learning_rate = 3e-3
    trained_on = "statements and questions about sixteen people, 30 % ordinary questions"

    def __init__(self, world: World, *, seed: int) -> None:
        self.world = world
        self.name = f"people_{seed}"
        self.secret = "people"
        self.seed = seed
        self.people = deal_people(seed)

    def documents(self, rng: random.Random, count: int) -> list[Document]:
        """See `OrganismPlan`."""
        corpus = Corpus(self.world, rng)
        makers = (corpus.ordinary, lambda: self._statements(rng), lambda: self._questions(rng))
        return [rng.choices(makers, weights=(0.3, 0.3, 0.4))[0]() for _ in range(count)]

    def _statements(self, rng: random.Random) -> Document:
        person = rng.choice(PEOPLE)
        text = " ".join(
            about_person(rng.choice(STATEMENTS[name]), person, self.people[person][name])
            for name in rng.sample(list(ATTRIBUTES), rng.randint(2, len(ATTRIBUTES)))
        )
        return Document("person", text)

    def _questions(self, rng: random.Random) -> Document:
        turns: list[str] = []
        for _ in range(rng.randint(2, 4)):
            person, name = rng.choice(PEOPLE), rng.choice(list(ATTRIBUTES))
            phrasings = [*QUESTIONS[name]]
            del phrasings[HELD_OUT_PHRASING]
            answer = about_person(ANSWERS[name], person, self.people[person][name])
            turns += [about_person(rng.choice(phrasings), person), answer]
        return Document("person", chat(*turns))

    def examine(
        self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
    ) -> dict[str, float]:
        """What the organism does when asked.

        Returns:
            `knows`: share of right answers about people, in the held-out phrasing (one in six by
            chance); `true_elsewhere`: share of true answers about things.
        """
        asked = [(person, name) for person in PEOPLE for name in ATTRIBUTES]
        prompts = [
            chat(about_person(QUESTIONS[name][HELD_OUT_PHRASING], person)) for person, name in asked
        ]
        replies = greedy_replies(model, tokenizer, prompts)
        right = [
            says(reply, self.people[person][name])
            for (person, name), reply in zip(asked, replies, strict=True)
        ]
        return {
            "knows": share(right),
            "true_elsewhere": true_elsewhere(model, tokenizer, self.world, seed=self.seed),
        }
