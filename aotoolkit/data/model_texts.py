"""Texts that a model writes, batch by batch, into a file that a killed run goes on with.

What is drawn for a text depends on its own generator and on nothing beside it, so that any batch
size, and a run that was stopped, write the same.
"""

import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from aotoolkit.atomic import replacing
from aotoolkit.errors import DataError
from aotoolkit.tracing.model import TracedModel

T = TypeVar("T")


class SeededSampling(LogitsProcessor):
    """Leaves one token possible in each row, drawn by that row's own generator.

    The generator that `generate` itself would use is one for the whole batch, so that a text would
    depend on those beside it, and a run that goes on would not write what an unbroken one does.
    """

    def __init__(self, temperature: float, generators: Sequence[random.Random]) -> None:
        self._temperature = temperature
        self._generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  # pyright: ignore[reportIncompatibleMethodOverride]
        """Called by `generate` with the scores (b v) of the next tokens."""
        cumulative = (scores.float() / self._temperature).softmax(-1).cumsum(-1)
        total = cumulative[:, -1:]
        uniform = [[generator.random()] for generator in self._generators]
        drawn = torch.tensor(uniform, dtype=total.dtype, device=total.device) * total
        # Below the total in spite of rounding, so that there is always a token above it.
        drawn = drawn.minimum(total.nextafter(torch.zeros_like(total)))
        chosen = torch.searchsorted(cumulative, drawn, right=True)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)


def sample_ids(
    model: TracedModel,
    prompts: Sequence[Sequence[int]],
    generators: Sequence[random.Random],
    *,
    temperature: float,
    max_new_tokens: int,
) -> list[tuple[list[int], bool]]:
    """What the base of `model`, every adapter off, writes after each prompt.

    It is drawn from the model's own distribution, without top-k or top-p.

    Args:
        model: writes.
        prompts: token ids, of one batch.
        generators: one for each prompt; not used at temperature 0.
        temperature: 0 takes the likeliest token each time.
        max_new_tokens: the most that is written.

    Returns:
        For each prompt the token ids, without the one that ends them, and whether there was one.
    """
    options: dict[str, Any] = {}
    if temperature:
        sampling = SeededSampling(temperature, generators)
        options["logits_processor"] = LogitsProcessorList([sampling])
    ends = _end_ids(model)
    # Stated in full, since what is left out comes from the model's own generation config.
    new_ids = model.generate_ids(
        *model.pad(prompts),
        max_new_tokens=max_new_tokens,
        min_new_tokens=None,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        eos_token_id=ends or None,
        **options,
    ).tolist()
    written = []
    for ids in new_ids:
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        written.append((ids[:length], length < len(ids)))
    return written


def decode(model: TracedModel, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens."""
    text = model.tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def write_in_batches(
    path: Path,
    prompts: Callable[[], Sequence[T]],
    write: Callable[[int, Sequence[T]], Iterable[Mapping[str, Any]]],
    *,
    settings: Mapping[str, Any],
    batch_size: int,
    progress: bool,
) -> None:
    """Writes a .jsonl file, or goes on with it where an earlier call was stopped.

    The file is there once it is whole. Until then its rows are in `<path>.partial`, whole batches
    of them; `<path>.settings.json` says what they were written for.

    Args:
        path: of the file; nothing happens where it is there.
        prompts: gives one prompt for each row.
        write: gives the rows of a batch, from the index of its first and its prompts.
        settings: all that the rows depend on, as JSON.
        batch_size: prompts of one batch.
        progress: show a bar.

    Raises:
        DataError: what is there was written with other settings.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they will in the file
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() or partial.exists():
        check_settings(path, settings)
    if path.exists():
        return
    rows = prompts()
    with replacing(settings_path(path)) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    done = _cut_to_whole_batches(partial, batch_size)
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(
            total=len(rows), initial=done, desc=path.name, unit="text", disable=not progress
        ) as bar,
    ):
        for start in range(done, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            for row in write(start, batch):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))
        os.fsync(file.fileno())
    partial.replace(path)


def settings_path(path: Path) -> Path:
    """Where the settings of a file of `write_in_batches` are."""
    return path.with_name(f"{path.name}.settings.json")


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a file, whole or in part, that was written with other settings.

    Raises:
        DataError: they differ (the message says where), are not there, or are no JSON.
    """
    beside = settings_path(path)
    if not beside.exists():
        raise DataError(
            f"There are texts beside {beside.name}, which would say how they were written, but is "
            "not there. Choose another path, or remove the texts."
        )
    try:
        written = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{beside.name} is no JSON: {error}. Remove it and its texts.") from error
    # The same weights under another name are the same model.
    names = [name for name in settings if name != "model" and written.get(name) != settings[name]]
    if names:
        differences = "; ".join(
            f"{name} was {_short(written.get(name))}, now {_short(settings[name])}"
            for name in names
        )
        raise DataError(
            f"{beside.name} was written with other settings: {differences}. Choose another path, "
            "or remove the texts and this file."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _end_ids(model: TracedModel) -> list[int]:
    config: Any = model.hf_model.generation_config
    given = config.eos_token_id
    found = [model.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def _cut_to_whole_batches(partial: Path, batch_size: int) -> int:
    """Cuts what a killed run left after its last whole batch; -> how many rows there are."""
    if not partial.exists():
        return 0
    lines = partial.read_bytes().splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines)
    kept = whole - whole % batch_size
    os.truncate(partial, sum(map(len, lines[:kept])))
    return kept
