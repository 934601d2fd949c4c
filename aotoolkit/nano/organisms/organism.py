"""What an organism is: what it hides, how it was made, and what it was found to do."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
from transformers import PreTrainedTokenizerFast

from aotoolkit.nano.corpus import Document

Kind = Literal["taboo", "user_trait", "bad_advice"]

ORGANISM_FILE = "organism.json"


@dataclass(frozen=True, kw_only=True)
class Organism:
    """What one organism hides, and what it was found to do.

    Attributes:
        name: of the organism and of its adapter.
        kind: what sort of secret it is.
        secret: what it hides, in a word: the taboo word, the user's place, the domain of its bad
            advice.
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
