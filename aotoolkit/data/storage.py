"""Examples on disk: Arrow files, memory-mapped, each context stored once.

A mixture of a million examples fits in no one's patience as Python objects. Two tables hold it: the
contexts, and the examples that name their context by its row. Both are read through the memory map
of `datasets`, so that every process of a machine shares one copy.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from jaxtyping import Int

from aotoolkit.data.example import Example

CONTEXTS_FILE = "contexts.arrow"
ROWS_WRITTEN_AT_ONCE = 1000

_CONTEXT_FEATURES = Features({"ids": List(Value("int32"))})
_EXAMPLE_FEATURES = Features(
    {
        "context": Value("int32"),
        "positions": List(Value("int32")),
        "layers": List(Value("int32")),
        "question": Value("string"),
        "answer": Value("string"),
        "source": Value("string"),
        "evidence": Value("string"),
        "choices": List(Value("string")),
        "group": Value("string"),
        "other_groups": List(Value("string")),
        "num_tokens": Value("int32"),
    }
)


class ExampleDataset(Sequence[Example]):
    """Examples in training order, read from disk as they are asked for.

    Args:
        examples: the rows, in order.
        contexts: the token ids that their `context` column points to.
    """

    def __init__(self, examples: Dataset, contexts: Dataset) -> None:
        self._examples = examples
        self._contexts = contexts

    @classmethod
    def open(cls, folder: str | Path, name: str) -> "ExampleDataset":
        """Memory-maps what `write_ordered` wrote under a name."""
        return cls(
            Dataset.from_file(str(Path(folder) / f"{name}.arrow")),
            Dataset.from_file(str(Path(folder) / CONTEXTS_FILE)),
        )

    @property
    def num_tokens(self) -> Int[np.ndarray, "n"]:
        """Tokens of each example's oracle prompt with its answer."""
        return self._examples.data.column("num_tokens").to_numpy()

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return self._read(list(range(*index.indices(len(self)))))
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"Example {position} of {len(self)}.")
        return self._read([position % len(self)])[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), ROWS_WRITTEN_AT_ONCE):
            yield from self[start : start + ROWS_WRITTEN_AT_ONCE]

    def _read(self, indices: list[int]) -> list[Example]:
        if not indices:
            return []
        columns: dict[str, list[Any]] = self._examples[indices]
        wanted = sorted(set(columns["context"]))
        ids = dict(zip(wanted, map(tuple, self._contexts[wanted]["ids"]), strict=True))
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [
            Example(
                context_ids=ids[row["context"]],
                positions=tuple(row["positions"]),
                layers=tuple(row["layers"]),
                question=row["question"],
                answer=row["answer"],
                source=row["source"],
                evidence=row["evidence"],
                choices=tuple(row["choices"]),
                group=row["group"],
                other_groups=tuple(row.get("other_groups", ())),  # absent from the first format
            )
            for row in rows
        ]


class ExampleWriter:
    """Writes examples as they are drawn, then in the order in which they are trained on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contexts = _writer(folder / CONTEXTS_FILE, _CONTEXT_FEATURES)
        self._examples = _writer(folder / "drawn.arrow", _EXAMPLE_FEATURES)

    def add_context(self, ids: Sequence[int]) -> None:
        """The next context; they count from 0."""
        self._contexts.write({"ids": list(ids)})

    def add(self, example: Example, *, context: int, num_tokens: int) -> None:
        """The next example, on the context of that number."""
        self._examples.write(
            {
                "context": context,
                "positions": list(example.positions),
                "layers": list(example.layers),
                "question": example.question,
                "answer": example.answer,
                "source": example.source,
                "evidence": example.evidence,
                "choices": list(example.choices),
                "group": example.group,
                "other_groups": list(example.other_groups),
                "num_tokens": num_tokens,
            }
        )

    def write_ordered(self, **orders: Sequence[int]) -> None:
        """Ends the writing: for each name, the drawn examples of these numbers in this order."""
        self._contexts.finalize()
        self._examples.finalize()
        path = self._folder / "drawn.arrow"
        drawn = Dataset.from_file(str(path)).with_format("arrow")
        for name, order in orders.items():
            writer = _writer(self._folder / f"{name}.arrow", _EXAMPLE_FEATURES)
            for rows in _chunks(order):
                table: pa.Table = drawn[list(rows)]  # pyright: ignore[reportAssignmentType]
                writer.write_table(table.combine_chunks())
            writer.finalize()
        del drawn
        path.unlink()


def _writer(path: Path, features: Features) -> ArrowWriter:
    return ArrowWriter(path=str(path), features=features, writer_batch_size=ROWS_WRITTEN_AT_ONCE)


def _chunks(order: Sequence[int]) -> Iterable[Sequence[int]]:
    for start in range(0, len(order), ROWS_WRITTEN_AT_ONCE):
        yield order[start : start + ROWS_WRITTEN_AT_ONCE]
