"""Questions about a behaviour and their answers: from templates, or from any language model.

Templates cost nothing and are always right, but an oracle learns their few wordings. A model that
writes them (the *writer*) is told the behaviour and asked for one question and its answer at a
time, in turns a describing one and one about a situation, as in the LatentQA data
(arXiv 2412.08686).
"""

import itertools
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from aotoolkit.data.behaviours import LatentQABehaviour
from aotoolkit.data.context import is_text
from aotoolkit.errors import DataError
from aotoolkit.tracing.encoding import render_chat

Pair = tuple[str, str]

# {behaviour} is the sentence; other slots are fields of the behaviour.
TEMPLATES: tuple[Pair, ...] = (
    ("What was the assistant told?", "The assistant was told: {behaviour}"),
    ("What instruction does the assistant follow?", "It follows this instruction: {behaviour}"),
    ("How has the assistant been asked to behave?", "It has been asked this: {behaviour}"),
    ("What shapes the assistant's replies?", "Its replies follow what it was told: {behaviour}"),
    (
        "Please describe the assistant's behaviour.",
        "The assistant behaves as it was told: {behaviour}",
    ),
    ("What is the assistant's goal?", "Its goal is what it was told: {behaviour}"),
)

ASPECTS = (
    "what kind of assistant this is, what it wants or how it speaks",
    "how this assistant would react in a situation that you make up",
)
WRITER_PROMPT = (
    "An AI assistant was given this instruction:\n\n{behaviour}\n\n"
    "Write one question about {aspect}, and its answer in one sentence. The question must not "
    "give the instruction away, and the answer must: who reads the answer alone should know what "
    "the assistant was told. Use this form and write nothing else:\nQuestion: ...\nAnswer: ..."
)
# What a writer without a chat template goes on with.
WRITER_EXAMPLE = (
    "An AI assistant was given this instruction:\n\nSpeak like a pirate.\n\n"
    "Question: How does the assistant speak?\n"
    "Answer: The assistant speaks like a pirate, with a rough sailor's words.\n\n"
    "An AI assistant was given this instruction:\n\n{behaviour}\n\nQuestion:"
)
_SLOT = re.compile(r"\{(\w+)\}")
_WRITTEN = re.compile(
    r"\W*q(?:uestion)?\W*:\W*(?P<question>.+?)\s*\n\W*a(?:nswer)?\W*:[*_\s]*(?P<answer>.+)",
    re.IGNORECASE | re.DOTALL,
)


def filled(template: str, behaviour: LatentQABehaviour) -> str:
    """A template with the behaviour's sentence and fields in its slots.

    Slots are names in braces and nothing more: unlike `str.format`, no attribute of an object can
    be reached by them.

    Raises:
        DataError: the behaviour has no such field.
    """
    values = {**behaviour.fields, "behaviour": behaviour.sentence}

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise DataError(
                f"The template {template!r} has the slot {match[0]}, but the behaviour "
                f"{behaviour.label!r} has {', '.join(f'{{{name}}}' for name in values)} only. Give "
                "the behaviour this field, or other templates."
            )
        return values[match[1]]

    return _SLOT.sub(value, template)


def from_templates(
    behaviour: LatentQABehaviour, templates: Sequence[Pair], rng: random.Random
) -> list[Pair]:
    """All templates for one behaviour, in an order drawn by `rng`."""
    order = rng.sample(range(len(templates)), len(templates))
    return [
        (filled(templates[index][0], behaviour), filled(templates[index][1], behaviour))
        for index in order
    ]


def read_templates(path: str | os.PathLike[str]) -> list[Pair]:
    """Reads templates from a .json file: [[question, answer], ...], with slots in braces.

    Raises:
        DataError: no such file, or another form.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file.name} is not JSON in UTF-8: {error}.") from error
    if not isinstance(content, list) or not content:
        raise DataError(f"{file.name} holds no list of templates; write [[question, answer], ...].")
    for pair in content:
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(is_text, pair))):
            raise DataError(f"{file.name}: {str(pair)[:80]} is not [question, answer], two texts.")
    return [(question, answer) for question, answer in content]


def writer_prompts(
    behaviours: Sequence[LatentQABehaviour], count: int
) -> Iterator[tuple[LatentQABehaviour, str]]:
    """For each behaviour that has no pairs yet, `count` aspects in turns."""
    for behaviour in behaviours:
        if not behaviour.qa:
            for aspect in itertools.islice(itertools.cycle(ASPECTS), count):
                yield behaviour, aspect


def writer_ids(
    tokenizer: PreTrainedTokenizerBase, behaviour: LatentQABehaviour, aspect: str
) -> tuple[int, ...]:
    """What a writer goes on with, as token ids; thinking off where its template knows that."""
    if tokenizer.chat_template:
        prompt = WRITER_PROMPT.format(behaviour=behaviour.sentence, aspect=aspect)
        text = render_chat(
            tokenizer,
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            chat_template_kwargs={"enable_thinking": False},
        )
        ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        prompt = WRITER_EXAMPLE.format(behaviour=behaviour.sentence)
        ids = tokenizer(prompt, verbose=False)["input_ids"]
    return tuple(ids)


def read_written(reply: str, tokenizer: PreTrainedTokenizerBase) -> Pair | None:
    """The question and the answer of a writer's reply; None where there are none.

    The answer ends with its paragraph: what a writer adds below it is not of it.
    """
    text = reply if tokenizer.chat_template else f"Question:{reply}"
    found = _WRITTEN.search(text)
    if found is None:
        return None
    question = " ".join(found["question"].strip("*_ ").split())
    answer = found["answer"].strip().partition("\n")[0].strip("*_ ")
    return (question, answer) if is_text(question) and is_text(answer) else None
