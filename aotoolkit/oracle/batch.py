"""Oracle prompts with their vectors -> one left-padded batch and its injection."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.injection import Injection
from aotoolkit.oracle.prompt import OraclePrompt


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt with what is injected into it.

    Attributes:
        prompt: The rendered prompt.
        vectors: [n d], after the transform, one for each of its placeholders.
        shift: Added to the position ids (LatentQA).
    """

    prompt: OraclePrompt
    vectors: Float[Tensor, "n d"]
    shift: int = 0

    @property
    def key(self) -> tuple[tuple[int, ...], int, bytes]:
        """Equal for rows that the model cannot tell apart, which then need to run only once."""
        return self.prompt.token_ids, self.shift, self.vectors.numpy().tobytes()

    @property
    def without_answer(self) -> "Row":
        """The row as it stands before its answer."""
        return dataclasses.replace(self, prompt=self.prompt.without_answer)


@dataclass(frozen=True, eq=False)
class Batch:
    """A left-padded batch."""

    input_ids: Int[Tensor, "b s"]
    attention_mask: Int[Tensor, "b s"]
    position_ids: Int[Tensor, "b s"]
    injection: Injection


def collate(
    rows: Sequence[Row],
    *,
    input_ids: Int[Tensor, "b s"],
    attention_mask: Int[Tensor, "b s"],
    contract: OracleContract,
) -> Batch:
    """Puts the vectors of left-padded rows where their placeholders are after padding."""
    length = input_ids.shape[1]
    at_row, at_col = [], []
    for index, row in enumerate(rows):
        places = row.prompt.placeholder_positions
        assert row.vectors.shape[0] == len(places), (row.vectors.shape, len(places))
        padding = length - len(row.prompt.token_ids)
        at_row += [index] * len(places)
        at_col += [padding + place for place in places]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask, [row.shift for row in rows]),
        injection=Injection(
            vectors=torch.cat([row.vectors for row in rows]),
            rows=torch.tensor(at_row, dtype=torch.long),
            cols=torch.tensor(at_col, dtype=torch.long),
            formula=contract.formula,
            coefficient=contract.coefficient,
            final_scale=contract.final_scale,
        ),
    )


def position_ids(attention_mask: Int[Tensor, "b s"], shifts: Sequence[int]) -> Int[Tensor, "b s"]:
    """Counts each row's own tokens from its shift; padding has 0."""
    counted = attention_mask.cumsum(-1) - 1
    moved = counted + torch.tensor(shifts, device=attention_mask.device)[:, None]
    return moved * attention_mask


def span_shift(contract: OracleContract, positions: Sequence[int]) -> int:
    """How far the contract's position rule moves a prompt about these target positions.

    LatentQA moves by the target tokens before the read span, not counting the first, which is
    the beginning of the sequence and never read.
    """
    return max(0, min(positions) - 1) if contract.position_ids == "shifted" else 0
