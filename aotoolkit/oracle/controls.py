"""The same question with the evidence removed.

An oracle shares its base with the target and can guess from the question alone, so an answer means
something only beside the answers it gives without the evidence.
"""

import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from aotoolkit.errors import QuestionError

ControlName = Literal["no_activation", "zero", "random", "shuffled", "base"]
CONTROLS: tuple[ControlName, ...] = get_args(ControlName)
# Shuffled vectors still are the evidence; only their order is gone.
KEEPS_EVIDENCE = frozenset({"shuffled"})

_ARTICLES = frozenset({"a", "an", "the"})


def resolve_controls(controls: bool | Sequence[ControlName]) -> tuple[ControlName, ...]:
    """True: all, False: none, else the ones named.

    Raises:
        QuestionError: A name that is no control.
    """
    if isinstance(controls, bool):
        return CONTROLS if controls else ()
    unknown = [name for name in controls if name not in CONTROLS]
    if isinstance(controls, str) or unknown:
        raise QuestionError(
            f"controls is {controls!r}; give True, False or a list of {', '.join(CONTROLS)}."
        )
    return tuple(controls)


def random_vectors(vectors: Float[Tensor, "l p d"], *, seed: int) -> Float[Tensor, "l p d"]:
    """Random directions with the norms of `vectors`; the same for one seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vectors.shape, generator=generator)
    lengths = vectors.norm(dim=-1, keepdim=True).cpu()
    return torch.nn.functional.normalize(noise, dim=-1) * lengths


def shuffled_vectors(vectors: Float[Tensor, "l p d"], *, seed: int) -> Float[Tensor, "l p d"]:
    """`vectors` with the positions in another order; at least two positions.

    A rotation by a random number of places: no vector stays where it was.
    """
    positions = vectors.shape[1]
    assert positions > 1, "one position has no other order"
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(positions, generator=generator)
    by = int(torch.randint(1, positions, (), generator=generator))
    result = torch.empty_like(vectors)
    result[:, order] = vectors[:, order.roll(by)]
    return result


def normalise(text: str) -> str:
    """An answer without case, punctuation, articles and spacing, to compare answers."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(" " if _is_punctuation(c) else c for c in folded).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _is_punctuation(character: str) -> bool:
    # Signs such as + are none to Unicode.
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def unsupported_by(text: str, controls: Mapping[str, str]) -> tuple[str, ...]:
    """The controls without the evidence that give the same answer."""
    answer = normalise(text)
    return tuple(
        name
        for name, control in controls.items()
        if name not in KEEPS_EVIDENCE and normalise(control) == answer
    )


def takes_evidence_away(controls: Mapping[str, Any]) -> bool:
    """Whether one of the controls takes the evidence away, so that it can refute an answer."""
    return any(name not in KEEPS_EVIDENCE for name in controls)
