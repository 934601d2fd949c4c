"""One training example: what is read, what is asked, what the answer is."""

from dataclasses import dataclass


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
    """

    context_ids: tuple[int, ...]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    question: str
    answer: str
    source: str

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
