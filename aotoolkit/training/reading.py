"""Reads of the base's activations for many contexts at once, as training needs them.

No context runs twice, none runs further than its last read token (the model is causal, so what
stands after it changes nothing) or deeper than its deepest read block, and contexts of like length
run together, so that padding is small.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aotoolkit.data.example import Example
from aotoolkit.tracing import TracedModel

# Enough to fill an accelerator, and small enough that reading is never what memory is spent on.
TOKENS_PER_FORWARD = 4096


@dataclass(frozen=True, slots=True)
class ContextRead:
    """What is read of one context.

    Attributes:
        context_ids: its token ids.
        layers: block indices, increasing.
        positions: indices into `context_ids`, increasing.
    """

    context_ids: tuple[int, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]

    def rows_of(self, example: Example) -> tuple[Tensor, Tensor]:
        """Where an example's vectors are in this read: indices `l 1` of layers, `p` of positions.

        Raises:
            KeyError: a layer or position of the example is not read.
        """
        layers = {layer: index for index, layer in enumerate(self.layers)}
        positions = {position: index for index, position in enumerate(self.positions)}
        return (
            torch.tensor([layers[layer] for layer in example.layers])[:, None],
            torch.tensor([positions[position] for position in example.positions]),
        )


def plan_reads(examples: Sequence[Example]) -> dict[tuple[int, ...], ContextRead]:
    """The one read of each context that serves all its examples, in order of first appearance."""
    layers: dict[tuple[int, ...], set[int]] = {}
    positions: dict[tuple[int, ...], set[int]] = {}
    for example in examples:
        layers.setdefault(example.context_ids, set()).update(example.layers)
        positions.setdefault(example.context_ids, set()).update(example.positions)
    return {
        ids: ContextRead(ids, tuple(sorted(layers[ids])), tuple(sorted(positions[ids])))
        for ids in layers
    }


def read_contexts(
    model: TracedModel, reads: Sequence[ContextRead]
) -> Iterator[tuple[ContextRead, Float[Tensor, "l p d"]]]:
    """Yields each read with its vectors, of the base alone, in an order of its own.

    Every adapter is off while the model runs, which is checked before each forward.

    Raises:
        ContextLengthError, LayerError, NonFiniteError, AdapterStateError: see
            `TracedModel.residuals`.
    """
    order = sorted(reads, key=lambda r: (r.layers[-1], r.positions[-1], r.context_ids))
    with model.using(None):
        for chunk in _chunks(order):
            layers = tuple(sorted({layer for read in chunk for layer in read.layers}))
            length = max(read.positions[-1] for read in chunk) + 1
            ids = torch.zeros(len(chunk), length, dtype=torch.long)
            mask = torch.zeros(len(chunk), length, dtype=torch.long)
            for row, read in enumerate(chunk):
                own = read.positions[-1] + 1
                ids[row, :own] = torch.tensor(read.context_ids[:own])
                mask[row, :own] = 1
            residuals = model.residuals(ids, mask, layers=layers, adapter=None)
            for row, read in enumerate(chunk):
                at = torch.tensor([layers.index(layer) for layer in read.layers])[:, None]
                yield read, residuals[at, row, torch.tensor(read.positions)]


def _chunks(order: Sequence[ContextRead]) -> Iterator[list[ContextRead]]:
    """Runs of reads that are equally deep and, padded to the longest, fit in one forward."""
    chunk: list[ContextRead] = []
    for read in order:
        tokens = (len(chunk) + 1) * (read.positions[-1] + 1)
        if chunk and (tokens > TOKENS_PER_FORWARD or read.layers[-1] != chunk[-1].layers[-1]):
            yield chunk
            chunk = []
        chunk.append(read)
    if chunk:
        yield chunk
