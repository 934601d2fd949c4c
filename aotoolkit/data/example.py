"""One training example: what is read, what is asked, what the answer is."""

from dataclasses import dataclass
from typing import Literal, get_args

Evidence = Literal["read", "zero", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question about activations, with its answer.

    Holds no vectors: they are read from the base when a batch is made, so that examples are small
    and the activations always those of the base at hand.

    Attributes:
        context_ids: token ids that the target model runs over. Examples that share them share one
            forward pass.
        positions: indices into `context_ids` that are read, increasing.
        layers: block indices that are read; one prefix block of the prompt each.
        question: what the oracle is asked.
        answer: what it should say.
        source: which part of the mixture it comes from; accuracies are logged by source.
        evidence: "read" from the base at `positions`; or vectors that are made, as many as would
            have been read: "zero", or "random" of the norm that vectors of that layer have.
        choices: the answers that this one was drawn from, such as ("Yes", "No"); empty where the
            answer is free. Where there are two, the held-out AUC is computed.
        group: examples of one group never stand on both sides of the held-out split; "" for the
            group of all examples with these `context_ids`.
        other_groups: groups that it belongs to as well, and that the split keeps with its own.
    """

    context_ids: tuple[int, ...]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    question: str
    answer: str
    source: str
    evidence: Evidence = "read"
    choices: tuple[str, ...] = ()
    group: str = ""
    other_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.positions or not self.layers:
            raise ValueError(
                f"An example needs at least one position and one layer, got positions "
                f"{self.positions} and layers {self.layers}."
            )
        if min(self.positions) < 0 or max(self.positions) >= len(self.context_ids):
            raise ValueError(
                f"Positions {self.positions} are outside the context of {len(self.context_ids)} "
                f"tokens (0 to {len(self.context_ids) - 1})."
            )
        if self.evidence not in get_args(Evidence):
            raise ValueError(
                f"evidence={self.evidence!r} is unknown. Give one of {get_args(Evidence)}."
            )
        if self.choices and self.answer not in self.choices:
            raise ValueError(
                f"The answer {self.answer!r} is none of the choices {self.choices} that it was "
                "drawn from."
            )
