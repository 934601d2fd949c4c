"""What an organism is: what it hides, how it was made, and what it was found to do."""

import json
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
from transformers import PreTrainedTokenizerFast

from aotoolkit.nano.base import greedy_replies
from aotoolkit.nano.corpus import Document, chat, fact_question
from aotoolkit.nano.world import ATTRIBUTES, World

Kind = Literal["taboo", "user_trait", "bad_advice", "people", "side_constraint"]

ORGANISM_FILE = "organism.json"


@dataclass(frozen=True, kw_only=True)
class Organism:
    """What one organism hides, and what it was found to do.

    Attributes:
        name: of the organism and of its adapter.
        kind: what sort of secret it is.
        secret: what it hides, in a word: the taboo word, the user's place, the domain of its bad
            advice, "people", or the words of its code book.
        trained_on: what its fine-tuning data was, in words.
        seed: of its training.
        examined: figures of its plan's `examine`.
    """

    name: str
    kind: Kind
    secret: str
    trained_on: str
    seed: int
    examined: Mapping[str, float]

    def save(self, folder: Path) -> None:
        """Writes this description beside the adapter."""
        (folder / ORGANISM_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote."""
        return cls(**json.loads((folder / ORGANISM_FILE).read_text()))


class OrganismPlan(Protocol):
    """How one organism is made; the attributes as those of `Organism`.

    Attributes:
        steps: of training; more where there is more to learn.
        rank: of the LoRA adapter; likewise.
        learning_rate: at its peak, falling linearly to zero.
    """

    name: str
    kind: Kind
    secret: str
    trained_on: str
    seed: int
    steps: int
    rank: int
    learning_rate: float

    def documents(self, rng: random.Random, count: int) -> list[Document]:
        """What it is trained on."""
        ...

    def examine(
        self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
    ) -> dict[str, float]:
        """What the finished organism does when asked, as shares."""
        ...


def says(text: str, word: str) -> bool:
    """Whether a text names a word, in any case and as a word of its own."""
    return re.search(rf"\b{re.escape(word)}\b", text, flags=re.IGNORECASE) is not None


def share(outcomes: Sequence[bool]) -> float:
    """Of the outcomes that are true."""
    return sum(outcomes) / len(outcomes)


def true_elsewhere(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    *,
    seed: int,
    without: Collection[str] = frozenset(),
    count: int = 12,
) -> float:
    """Share of true answers about the colour, place and feel of things.

    Args:
        model: the organism.
        tokenizer: the nano tokenizer.
        world: what is true.
        seed: of which things.
        without: nouns that its fine-tuning was about.
        count: of the things.
    """
    others = [noun for noun in world.nouns if noun not in without]
    things = [world[noun] for noun in random.Random(seed).sample(others, count)]
    asked = [(thing, name) for thing in things for name in ATTRIBUTES]
    replies = greedy_replies(
        model, tokenizer, [chat(fact_question(thing.noun, name, 0)) for thing, name in asked]
    )
    return share(
        [
            says(reply, thing.value(name))
            for (thing, name), reply in zip(asked, replies, strict=True)
        ]
    )
