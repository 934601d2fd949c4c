"""Examples that someone wrote down: .json and .jsonl files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aotoolkit.data.context import is_text
from aotoolkit.data.example import Example
from aotoolkit.errors import DataError, PositionError, PromptError
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import resolve_positions

_TEXTS = ("question", "answer")
_ALLOWED = {*_TEXTS, "context", "context_ids", "positions", "layers", "source", "group", "choices"}


def read_examples(path: str | os.PathLike[str], model: TracedModel) -> list[Example]:
    """Reads examples from a .jsonl file (one a line) or a .json file (a list).

    Each is an object with `question`, `answer`, and either `context` (a text, or a list of messages
    with `role` and `content`) or `context_ids`. It may have `positions` (indices into the context's
    tokens, negative from its end; by default all), `choices`, `group`, `source` (by default the
    file's name) and `layers` (by default block 0, for where layers are chosen later).

    Args:
        path: the file.
        model: the target, whose tokenizer and chat template make token ids of contexts.

    Raises:
        DataError: the file is absent, empty or not JSON, or an example in it is in another form;
            the message names file and line (or item, counted from 1).
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            lines = enumerate(text.split("\n"), start=1)
            entries = [(f"line {n}", json.loads(line)) for n, line in lines if line.strip()]
        else:
            values = json.loads(text)
            if not isinstance(values, list):
                raise DataError(f"{file.name} holds no list, but a {type(values).__name__}.")
            entries = [(f"item {n}", value) for n, value in enumerate(values, start=1)]
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file.name} is not JSON in UTF-8: {error}.") from error
    if not entries:
        raise DataError(f"{file.name} has no example in it.")
    examples = []
    for where, entry in entries:
        try:
            examples.append(_example(entry, model, source=file.stem))
        except (DataError, PromptError, PositionError, ValueError, TypeError) as error:
            raise DataError(f"{file.name}, {where}: {error}") from error
    return examples


def _example(entry: Any, model: TracedModel, *, source: str) -> Example:
    if not isinstance(entry, Mapping):
        raise DataError(f"{str(entry)[:80]!r} is no object with question, answer and context.")
    if unknown := sorted(set(entry) - _ALLOWED):
        raise DataError(f"unknown key {unknown[0]!r}; allowed are {', '.join(sorted(_ALLOWED))}.")
    for name in _TEXTS:
        if not is_text(entry.get(name)):
            raise DataError(f"{name} is {entry.get(name)!r}; it must be a text.")
    if ("context" in entry) == ("context_ids" in entry):
        raise DataError("give either context or context_ids.")
    context = entry.get("context", entry.get("context_ids"))
    chat = isinstance(context, list) and bool(context) and isinstance(context[-1], Mapping)
    # A reply that has been given is read as it is; otherwise one is about to begin.
    replied = chat and context[-1].get("role") == "assistant"
    ids = model.encode(context, add_generation_prompt=not replied).token_ids
    positions = resolve_positions(entry.get("positions"), len(ids))
    layers = entry.get("layers", (0,))
    if not isinstance(layers, list | tuple) or not all(_is_block(layer) for layer in layers):
        raise DataError(f"layers is {layers!r}; it must be a list of blocks, from 0.")
    return Example(
        context_ids=ids,
        positions=tuple(sorted(set(positions))),
        layers=tuple(layers),
        question=entry["question"],
        answer=entry["answer"],
        source=str(entry.get("source", source)),
        choices=tuple(entry.get("choices", ())),
        group=str(entry.get("group", "")),
    )


def _is_block(layer: Any) -> bool:
    return isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
