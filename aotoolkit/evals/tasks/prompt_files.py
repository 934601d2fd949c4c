"""Readers of the published prompt files, as they are.

Prompts and constraints stand one a line (`.txt`), people in `personas.jsonl`, statements in CSV
files beside `paraphrases.json`, LatentQA's chats in JSON files, relations in tab-separated files of
the Patchscopes form.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aotoolkit.data import load_latentqa, read_labelled_texts
from aotoolkit.data.context import is_text
from aotoolkit.errors import DataError
from aotoolkit.evals.tasks.classification import Predicate
from aotoolkit.evals.tasks.generative import TextQuestion
from aotoolkit.evals.tasks.hidden_prompt import HiddenPrompt
from aotoolkit.evals.tasks.persona_qa import Person
from aotoolkit.evals.tasks.relations import Mention, Relation

FilePath = str | os.PathLike[str]

_NOT_ATTRIBUTES = ("id", "variant", "name")
_TEXT_LABEL = "sqa-"  # LatentQA labels of questions about a text, not about a behaviour


def read_lines(path: FilePath) -> tuple[str, ...]:
    """The lines of a file, without empty ones: prompts, or constraints.

    Raises:
        DataError: There is no such file, it is not UTF-8, or it has no line.
    """
    lines = tuple(line.strip() for line in _text(Path(path)).splitlines() if line.strip())
    if not lines:
        raise DataError(f"{path} is empty; expected one prompt a line.")
    return lines


def read_personas(path: FilePath) -> tuple[Person, ...]:
    """People from a JSON-lines file: `name`, and each further field an attribute.

    Raises:
        DataError: There is no such file, or a line of it is no person.
    """
    people = []
    for number, line in enumerate(_text(Path(path)).splitlines(), start=1):
        if not line.strip():
            continue
        entry = _json(line, f"Line {number} of {path}")
        if not isinstance(entry, dict) or not is_text(entry.get("name")):
            raise DataError(
                f"Line {number} of {path} is {line[:80]!r}; expected an object with a name."
            )
        attributes = {key: value for key, value in entry.items() if key not in _NOT_ATTRIBUTES}
        bad = [key for key, value in attributes.items() if not is_text(value)]
        if bad or not attributes:
            raise DataError(
                f"Line {number} of {path}, {entry['name']!r}: {bad or 'attributes'} must be text "
                "that is not empty."
            )
        people.append(Person(name=entry["name"], attributes=attributes))
    if not people:
        raise DataError(f"{path} is empty; expected one person a line.")
    return tuple(people)


def read_questions(path: FilePath, *keys: str, label: str = "") -> tuple[str, ...]:
    """Wordings of a question from `paraphrases.json`.

    Args:
        path: The file.
        *keys: Where they stand: ("geometry_of_truth",) or ("singular_plural", "multiple").
        label: What stands in the place of `{}`.

    Raises:
        DataError: There is no such file or key, what stands there is no list of questions, or
            these have a place for a label and none is given.
    """
    found: Any = _json(_text(Path(path)), str(path))
    for depth, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            there = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise DataError(
                f"{path} has no key {key!r} under {list(keys[:depth])}; there is {there}."
            )
        found = found[key]
    if not isinstance(found, list) or not found or not all(map(is_text, found)):
        raise DataError(f"{path}, key {list(keys)}: expected a list of questions.")
    if not label and (slots := [question for question in found if "{}" in question]):
        raise DataError(
            f"{path}, key {list(keys)}: {slots[0]!r} has a place for a label; give one."
        )
    return tuple(question.replace("{}", label) for question in found)


def read_predicate(
    path: FilePath,
    *,
    questions: Sequence[str],
    positive: str = "1",
    text: str = "statement",
    label: str = "label",
    name: str = "",
) -> Predicate:
    """A predicate from a file of texts and labels.

    Args:
        path: Any file that `read_labelled_texts` reads.
        questions: To which "Yes" is the answer for the positives.
        positive: The label of the positives; texts of any other label alone are negatives.
        text: Name of the column with the text.
        label: Name of the column with the label.
        name: The predicate's name; default: the file's.

    Raises:
        DataError: As `read_labelled_texts`; or no text has the label, or all have.
    """
    found = read_labelled_texts(path, text=text, label=label)
    sides: dict[bool, list[str]] = {True: [], False: []}
    for content, labels in found.texts.items():
        sides[positive in labels].append(content)
    if not all(sides.values()):
        raise DataError(
            f"{path}: {len(sides[True])} texts have the label {positive!r} in the column "
            f"{label!r} and {len(sides[False])} have not. Its labels: {list(found.counts)[:10]}."
        )
    return Predicate(
        name=name or Path(path).stem,
        positives=tuple(sides[True]),
        negatives=tuple(sides[False]),
        questions=tuple(questions),
    )


@dataclass(frozen=True)
class _PublishedFile:
    """Where the parts of a published predicate stand."""

    text: str
    label: str
    positive: str
    questions: tuple[str, ...]


_PUBLISHED: Mapping[str, _PublishedFile] = {
    "cities": _PublishedFile("statement", "label", "1", ("geometry_of_truth",)),
    "larger_than": _PublishedFile("statement", "label", "1", ("geometry_of_truth",)),
    "sp_en_trans": _PublishedFile("statement", "label", "1", ("geometry_of_truth",)),
    "singular_plural": _PublishedFile(
        "sentence", "n_subjects", "multiple", ("singular_plural", "multiple")
    ),
}


def read_published_predicates(folder: FilePath) -> tuple[Predicate, ...]:
    """Those of the published classification sets that stand in a folder.

    They are cities, larger_than, sp_en_trans and singular_plural, as `.csv` files.

    Raises:
        DataError: None is there, or one is not in its form, or `paraphrases.json` is not there.
    """
    path = Path(folder)
    there = [name for name in _PUBLISHED if (path / f"{name}.csv").is_file()]
    if not there:
        raise DataError(f"{path} has none of {', '.join(f'{name}.csv' for name in _PUBLISHED)}.")
    return tuple(
        read_predicate(
            path / f"{name}.csv",
            questions=read_questions(path / "paraphrases.json", *_PUBLISHED[name].questions),
            positive=_PUBLISHED[name].positive,
            text=_PUBLISHED[name].text,
            label=_PUBLISHED[name].label,
        )
        for name in there
    )


def read_hidden_prompts(folder: FilePath) -> tuple[HiddenPrompt, ...]:
    """Hidden system prompts from LatentQA's `system.json` and `qa.json`.

    The first question of a label asks for the behaviour itself and is taken; the second asks what
    follows from it and names it. Labels without questions are left out. The first two words of a
    label are its category: `persona-time`, `goal-emotion`.

    Raises:
        DataError: As `load_latentqa`.
    """
    data = load_latentqa(folder, kinds=["system"], incomplete="leave_out")
    return tuple(
        HiddenPrompt(
            label=item.label,
            system=item.messages[0]["content"],
            turns=item.messages[1:],
            question=item.qa[0][0],
            answer=item.qa[0][1],
            category="-".join(item.label.split("-")[:2]),
        )
        for item in data.items
    )


def read_text_questions(folder: FilePath) -> tuple[TextQuestion, ...]:
    """Questions about a text from LatentQA's `control.json` and `qa.json`.

    Stories with questions about them are facts; the descriptions of an instruction or persona are
    gists.

    Raises:
        DataError: As `load_latentqa`.
    """
    data = load_latentqa(folder, kinds=["control"], incomplete="leave_out")
    return tuple(
        TextQuestion(
            text=item.messages,
            question=question,
            answers=(answer,),
            kind="fact" if item.label.startswith(_TEXT_LABEL) else "gist",
            unit=item.label,
        )
        for item in data.items
        for question, answer in (item.qa if item.label.startswith(_TEXT_LABEL) else item.qa[:1])
    )


def read_relation(path: FilePath, *, name: str = "") -> Relation:
    """A relation from a tab-separated file of the Patchscopes form.

    Its columns `subject`, `object` and `prompt_source` are read; the published positions count the
    tokens of another tokenizer. Where `prompt_source` is empty the text is the subject alone; rows
    whose text does not mention the subject as it is written are left out.

    Raises:
        DataError: There is no such file, a column of these is missing, or no row can be used.
    """
    mentions: dict[Mention, None] = {}
    left_out = 0
    for number, row in enumerate(_tsv_rows(Path(path)), start=2):
        subject, found, text = row["subject"], row["object"], row["prompt_source"]
        if not is_text(subject) or not is_text(found):
            raise DataError(
                f"Row {number} of {path} has the subject {subject!r} and the object {found!r}."
            )
        text = text if is_text(text) else subject
        if subject in text:
            mentions[Mention(subject=subject, object=found, text=text)] = None
        else:
            left_out += 1
    if not mentions:
        raise DataError(f"{path} has no row to use ({left_out} do not mention their subject).")
    return Relation(name=name or Path(path).stem, mentions=tuple(mentions), left_out=left_out)


def _tsv_rows(path: Path) -> Iterator[Mapping[str, str]]:
    _text(path)  # says what is wrong with the file
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", restval="")
        missing = {"subject", "object", "prompt_source"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(
                f"{path} has no column {sorted(missing)}; its columns are {rows.fieldnames}."
            )
        try:
            yield from rows
        except csv.Error as error:
            raise DataError(f"{path} is no tab-separated file: {error}.") from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}.") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from error
