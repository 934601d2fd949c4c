"""Several documents in one line of a batch, each for itself.

The documents of an organism differ in length: where every one has a line of its own, two tokens of
five are padding. In shared lines the same training takes about two thirds of the time; gradients
differ by rounding alone, and the rows of a batch stay those that the trainer drew.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class PackedRows:
    """Batches rows in as few lines of the longest row's length as first-fit finds, longest first.

    A token attends to what comes before it in its own row, and counts its position from there.

    Args:
        pad_token_id: stands where nothing fitted.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Gives `input_ids`, `labels`, `position_ids`, each `l s`, and `attention_mask`, `l 1 s s`.

        A row's first token is no target: what stands before it is another row's.
        """
        lines = _first_fit(rows)
        shape = len(lines), max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, -100)
        positions = torch.zeros(shape, dtype=torch.long)
        owners = torch.full(shape, -1)
        for index, line in enumerate(lines):
            start = 0
            for owner, row in enumerate(line):
                end = start + len(row["input_ids"])
                input_ids[index, start:end] = torch.tensor(row["input_ids"])
                labels[index, start + 1 : end] = torch.tensor(row["labels"][1:])
                positions[index, start:end] = torch.arange(end - start)
                owners[index, start:end] = owner
                start = end
        # True is seen. Padding sees padding, since a token that sees nothing would give NaN.
        mask = (owners[:, :, None] == owners[:, None, :]).tril()
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": positions,
            "attention_mask": mask[:, None],
        }


def _first_fit(rows: Sequence[dict[str, list[int]]]) -> list[list[dict[str, list[int]]]]:
    """Each row in the first line that has room for it."""
    by_length = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)
    length = len(by_length[0]["input_ids"])
    lines: list[list[dict[str, list[int]]]] = []
    room: list[int] = []
    for row in by_length:
        needed = len(row["input_ids"])
        found = next((index for index, left in enumerate(room) if left >= needed), None)
        if found is None:
            lines.append([row])
            room.append(length - needed)
        else:
            lines[found].append(row)
            room[found] -= needed
    return lines
