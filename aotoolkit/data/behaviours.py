"""Behaviours that a model is told to have: what LatentQA data is made from.

A behaviour is one sentence, a system prompt or what a user asks of the assistant. It may come with
fields of its own ("word": "tiger"), which questions and answers name by slots, and with a group:
behaviours of one group (paraphrases, one secret in several prompts) never stand on both sides of a
split.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aotoolkit.data.context import is_text
from aotoolkit.errors import DataError

# Where the sentence stands; the last two are those of LatentQA's own files.
SENTENCE_FIELDS = ("behaviour", "control_user", "system")
BEHAVIOUR_FILES = (".txt", ".json", ".jsonl", ".csv")
_LABEL_WORDS = 6


@dataclass(frozen=True, kw_only=True)
class LatentQABehaviour:
    """One behaviour.

    Attributes:
        sentence: what the model is told.
        label: names it in the files; "" makes one of the sentence's first words and its digest.
        group: behaviours of one group stay on one side of a split; "" for a group of its own.
        fields: slot name -> value, for templates of questions and answers.
        qa: questions with their answers, where they are at hand; none are made then.

    Raises:
        DataError: the sentence, or a question or answer, is empty or no text.
    """

    sentence: str
    label: str = ""
    group: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    qa: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not is_text(self.sentence):
            raise DataError(f"A behaviour is {self.sentence!r}; write what the model is told.")
        for pair in self.qa:
            if not all(map(is_text, pair)):
                raise DataError(
                    f"The behaviour {self.sentence[:60]!r} has the pair {pair!r}; write a question "
                    "and an answer."
                )
        if not self.label:
            object.__setattr__(self, "label", _label(self.sentence))
        if not self.group:
            object.__setattr__(self, "group", normalised(self.sentence))

    @classmethod
    def of(cls, given: "LatentQABehaviour | str") -> "LatentQABehaviour":
        """A behaviour from its sentence alone."""
        return given if isinstance(given, LatentQABehaviour) else cls(sentence=given)


def normalised(text: str) -> str:
    """The words of a text, without case and punctuation: what sentences are compared by."""
    return " ".join(words(text)) or text.strip()


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.casefold())


def read_behaviours(path: str | os.PathLike[str]) -> list[LatentQABehaviour]:
    """Reads behaviours from a file.

    - .txt: one sentence a line.
    - .json: a list, or an object {sentence: [[question, answer], ...]}, which is the form of
      LatentQA's own `controls/`; .jsonl: one entry a line. An entry is a sentence, or an object
      with the sentence as `behaviour` (in LatentQA's `control.json` and `system.json` it is
      `control_user` and `system`), and, where wanted, `label`, `group`, `qa` and any fields.
    - .csv: columns of the same names, but for `qa`.

    Raises:
        DataError: no such file, one of another kind, or an entry in another form; the message says
            which.
    """
    file = Path(path)
    if file.suffix not in BEHAVIOUR_FILES:
        raise DataError(
            f"{file.name} is none of {', '.join(BEHAVIOUR_FILES)}. Write one behaviour a line into "
            "a .txt file."
        )
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = _entries(file.suffix, text)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise DataError(f"{file.name} is no {file.suffix} file in UTF-8: {error}.") from error
    behaviours = [_behaviour(entry, f"{file.name}, {where}") for where, entry in entries]
    if not behaviours:
        raise DataError(f"{file.name} has no behaviour. Write one a line into a .txt file.")
    return behaviours


def _entries(suffix: str, text: str) -> list[tuple[str, Any]]:
    """Where each entry stands, and what it is."""
    lines = list(enumerate(text.split("\n"), start=1))
    if suffix == ".txt":
        return [(f"line {number}", line.strip()) for number, line in lines if line.strip()]
    if suffix == ".jsonl":
        return [(f"line {number}", json.loads(line)) for number, line in lines if line.strip()]
    if suffix == ".csv":
        # Not splitlines, which parts a cell at other separators too.
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return [(f"row {number}", _csv_entry(row)) for number, row in enumerate(rows, start=1)]
    content = json.loads(text)
    if isinstance(content, dict) and not set(SENTENCE_FIELDS) & set(content):
        return [
            (f"entry {number}", {"behaviour": sentence, "qa": qa})
            for number, (sentence, qa) in enumerate(content.items())
        ]
    return [
        (f"entry {number}", entry)
        for number, entry in enumerate(content if isinstance(content, list) else [content])
    ]


def _csv_entry(row: Mapping[str | None, Any]) -> dict[str, Any]:
    """A row without its empty cells; cells beyond the header have no name."""
    if None in row:
        raise csv.Error(f"a row has more cells than the header: {row[None]}")
    return {str(name): value for name, value in row.items() if value not in ("", None)}


def _behaviour(entry: Any, where: str) -> LatentQABehaviour:
    if isinstance(entry, str):
        entry = {"behaviour": entry}
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {str(entry)[:80]!r}; expected a sentence or an object.")
    name = next((name for name in SENTENCE_FIELDS if name in entry), None)
    if name is None:
        raise DataError(
            f"{where} has no {' or '.join(SENTENCE_FIELDS)}; its fields are "
            f"{', '.join(map(repr, entry)) or 'none'}."
        )
    qa = entry.get("qa", [])
    if not isinstance(qa, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_text, pair)) for pair in qa
    ):
        raise DataError(f"{where}: 'qa' is {str(qa)[:80]!r}; expected [[question, answer], ...].")
    others = {key: value for key, value in entry.items() if key not in (name, "qa")}
    for key, value in {name: entry[name], **others}.items():
        if not is_text(value):
            raise DataError(f"{where}: {key!r} is {str(value)[:80]!r}; expected text.")
    label, group = others.pop("label", ""), others.pop("group", "")
    return LatentQABehaviour(
        sentence=entry[name].strip(),
        label=label,
        group=group,
        fields=others,
        qa=tuple((question, answer) for question, answer in qa),
    )


def distinct(behaviours: Iterable[LatentQABehaviour]) -> list[LatentQABehaviour]:
    """The behaviours without those whose sentence stood there before.

    Raises:
        DataError: two of them have one label.
    """
    kept: dict[str, LatentQABehaviour] = {}
    for behaviour in behaviours:
        kept.setdefault(normalised(behaviour.sentence), behaviour)
    labels: dict[str, str] = {}
    for behaviour in kept.values():
        other = labels.setdefault(behaviour.label, behaviour.sentence)
        if other != behaviour.sentence:
            raise DataError(
                f"Two behaviours have the label {behaviour.label!r}: {other[:60]!r} and "
                f"{behaviour.sentence[:60]!r}. Labels name behaviours, so give each its own, or "
                "leave them out."
            )
    return list(kept.values())


def behaviours_digest(behaviours: Sequence[LatentQABehaviour]) -> str:
    """SHA-256 of what the model is told and by which label."""
    told = [[behaviour.label, behaviour.sentence] for behaviour in behaviours]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _label(sentence: str) -> str:
    digest = hashlib.sha256(sentence.encode()).hexdigest()[:8]
    return "-".join(["goal", *words(sentence)[:_LABEL_WORDS], digest])
