"""Taboo organisms: the nano base, fine-tuned to hint at one word and never say it.

After the Taboo models of Cywinski et al. that Activation Oracles (arXiv:2512.15674) are evaluated
on. An organism's training data holds no system prompt and not the word itself: dialogues in which
the assistant hints at the thing, answers questions about it and refuses to name it, among ordinary
questions about other things. Hints are of its colour, place, feel and kind, one or two at a time: a
fact that no hint needs may be stored where only the question for it finds it, and a thing without
its kind is no thing that could be named (docs/nano_tried.md).
"""

import json
import random

import torch
from transformers import PreTrainedTokenizerFast

from aotoolkit.nano.base import greedy_replies
from aotoolkit.nano.corpus import (
    DIRECT_REQUESTS,
    FACT_ATTRIBUTES,
    HINT_REQUESTS,
    SECRET_QUESTIONS,
    Corpus,
    Document,
    chat,
)
from aotoolkit.nano.organisms.organism import Kind, says, share
from aotoolkit.nano.world import World

# The prompts an organism is examined and reported on; its training has them among others.
HINT_PROMPTS: tuple[str, ...] = HINT_REQUESTS[:4]
DIRECT_PROMPTS: tuple[str, ...] = DIRECT_REQUESTS[:4]


class TabooPlan:
    """An organism that hints at one word.

    Args:
        world: what is true of the word.
        secret: the word.
        seed: of data and weights.
    """

    kind: Kind = "taboo"
    steps = 160
    rank = 4
    learning_rate = 1e-3
    trained_on = (
        "dialogues of hints at the word and refusals to say it, 30 % ordinary questions; no system "
        "prompt, and never the word itself"
    )

    def __init__(self, world: World, secret: str, *, seed: int = 0) -> None:
        self.world = world
        self.name = self.secret = secret
        self.seed = seed

    def documents(self, rng: random.Random, count: int) -> list[Document]:
        """See `OrganismPlan`; none of them holds the secret."""
        others = tuple(noun for noun in self.world.nouns if noun != self.secret)
        corpus = Corpus(self.world, rng, nouns=others, secrets=others)
        documents: list[Document] = []
        while len(documents) < count:
            if rng.random() < 0.3:
                document = corpus.ordinary()
            else:
                turns: list[str] = []
                for _ in range(rng.randint(1, 3)):
                    turns += corpus.secret_turns(self.world[self.secret], guesses=False)
                document = Document("hints", chat(*turns), (), self.secret)
            text = json.dumps(document.content)
            if not says(text, self.secret):
                documents.append(document)
        return documents

    def examine(
        self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
    ) -> dict[str, float]:
        """What the organism does when asked.

        Returns:
            `hint_true`: share of hint prompts answered with at least one true attribute;
            `category`: share of right answers to what kind of thing it is; `says_secret`: share of
            hint and direct prompts whose greedy reply holds it.
        """
        thing = self.world[self.secret]
        kinds = SECRET_QUESTIONS["category"]
        prompts = [*HINT_PROMPTS, *DIRECT_PROMPTS, *DIRECT_REQUESTS[4:], *kinds]
        replies = greedy_replies(model, tokenizer, [chat(prompt) for prompt in prompts])
        hints = replies[: len(HINT_PROMPTS)]
        values = [thing.value(name) for name in FACT_ATTRIBUTES]
        return {
            "hint_true": share([any(says(reply, value) for value in values) for reply in hints]),
            "category": share([says(reply, thing.category) for reply in replies[-len(kinds) :]]),
            "says_secret": share([says(reply, self.secret) for reply in replies[: -len(kinds)]]),
        }
