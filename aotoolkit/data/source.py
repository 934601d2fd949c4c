"""What a source of examples is, and what all of them share: seeding, layers, digests.

A source is asked for groups: lists of examples that share one context, so that one forward pass of
the base serves them all. Each group is drawn by a generator of its own, seeded by the run, the
source and the group's index. So a group depends on nothing that was drawn before it, and a mixture
may be built by any number of workers.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

from aotoolkit.data.example import Example
from aotoolkit.errors import DataError

LayerMode = Literal["one", "each", "all"]


@runtime_checkable
class Source(Protocol):
    """A part of a training mixture.

    Attributes:
        name: unique in a mixture. It seeds the source, and is the `source` of its examples.
    """

    @property
    def name(self) -> str:
        """Unique in a mixture."""
        ...

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """Lists of examples that share one context, lazily; finite or endless.

        The same for the same seed, whatever PYTHONHASHSEED or the number of workers.
        """
        ...

    def describe(self) -> dict[str, object]:
        """JSON for the manifest: the kind of source, its settings, the digest of its data."""
        ...


@dataclass(frozen=True)
class LayerChoice:
    """Which layers an example reads.

    Attributes:
        read_layers: block indices to choose from, increasing.
        mode: "one": one of them, drawn at random (LatentQA data in the paper's mixture). "each":
            the example once for every layer (the paper's classification and context prediction).
            "all": one example that reads all of them, one prefix block each.
    """

    read_layers: tuple[int, ...]
    mode: LayerMode = "one"

    def __post_init__(self) -> None:
        if self.mode not in get_args(LayerMode):
            raise DataError(
                f"Layer mode {self.mode!r} is unknown. Give one of {get_args(LayerMode)}."
            )
        layers = self.read_layers
        if not layers or min(layers) < 0 or list(layers) != sorted(set(layers)):
            raise DataError(
                f"Cannot read layers {layers}. Give block indices from 0, increasing, each once; "
                "TracedModel.resolve_layer makes them from fractions of depth."
            )

    def draw(self, rng: random.Random) -> list[tuple[int, ...]]:
        """The `layers` of each example to make."""
        if self.mode == "one":
            return [(rng.choice(self.read_layers),)]
        if self.mode == "each":
            return [(layer,) for layer in self.read_layers]
        return [self.read_layers]


def group_rng(seed: int, name: str, index: int) -> random.Random:
    """The generator of one group of a source: of nothing but these three."""
    # A string is hashed by SHA-512 there, so PYTHONHASHSEED plays no part.
    return random.Random(f"{seed}/{name}/{index}")


def text_group(content: str | Sequence[Mapping[str, str]]) -> str:
    """The group of all examples of one text, or chat, however much of it a context holds.

    A context depends on what a source draws, cuts and renders, so two of one text may differ.
    """
    text = content.strip() if isinstance(content, str) else json.dumps(list(map(dict, content)))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
