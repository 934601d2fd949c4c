"""What an evaluation keeps of each answer: a line of JSON, from which a stopped run goes on.

Lines are only ever added, each written whole and flushed to the disk, so that a kill costs the line
that it cut. `Record.key` says which answer a line is; it holds the digest of all that the answer
depends on, so that one to a changed item, or of a changed oracle, is never taken for this one.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from aotoolkit.atomic import replacing
from aotoolkit.errors import BrokenRecordWarning, EvalError
from aotoolkit.evals.arms import Arm, Kind
from aotoolkit.evals.items import ArmAnswer, EvalItem, SecondaryScores, Task
from aotoolkit.evals.suite import oracle_seed

# task, arm, oracle seed, item, digest
# What step of a ladder an item is, in its details (`aotoolkit.evals.views`).
RUNG = "rung"
RecordKey = tuple[str, str, int | None, str, str]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One arm's answer to one item, and how right it is.

    Attributes:
        task: The task's name.
        metric: What `correct` is, in words.
        arm: The arm's name.
        kind: Its kind.
        seed: The training seed of the oracle that it asks; None where it has none.
        item: The item's id.
        unit: The item's unit.
        question: What was asked.
        answers: What counts as right.
        choices: Candidates; empty where the answer is free.
        tokens: Strings of the tokens of the whole prompt.
        read: The positions among them whose activations were read.
        text: The answer.
        scores: Choice -> score; see `ArmAnswer`.
        correct: The task's score, from 0 to 1.
        secondary: The task's further scores.
        digest: Of all that the answer depends on.
        details: What the answer rests on.
    """

    task: str
    metric: str
    arm: str
    kind: Kind
    seed: int | None
    item: str
    unit: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    tokens: tuple[str, ...]
    read: tuple[int, ...]
    text: str
    scores: Mapping[str, float]
    correct: float
    secondary: Mapping[str, float] = field(default_factory=dict)
    digest: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        task: Task,
        arm: Arm,
        item: EvalItem,
        answer: ArmAnswer,
        *,
        tokens: tuple[str, ...],
        digest: str,
    ) -> Self:
        """The record of an answer, scored by the task.

        Raises:
            EvalError: A score is not from 0 to 1.
        """
        secondary: dict[str, float] = {}
        if isinstance(task, SecondaryScores):
            for name in task.secondary:
                secondary[name] = float(task.secondary_score(name, item, answer))
        correct = float(task.score(item, answer))
        for name, score in {task.metric: correct, **secondary}.items():
            if not 0 <= score <= 1:
                raise EvalError(
                    f"The task {task.name!r} gives item {item.id!r} the score {score} "
                    f"({name}); a score is from 0 to 1."
                )
        rung = {RUNG: item.details[RUNG]} if RUNG in item.details else {}
        return cls(
            task=task.name,
            metric=task.metric,
            arm=arm.name,
            kind=arm.kind,
            seed=oracle_seed(arm),
            item=item.id,
            unit=item.unit,
            question=item.question,
            answers=item.answers,
            choices=item.choices,
            tokens=tokens,
            read=item.activations.positions,
            text=answer.text,
            scores=dict(answer.scores),
            correct=correct,
            secondary=secondary,
            digest=digest,
            details={**rung, **answer.details},
        )

    @property
    def key(self) -> RecordKey:
        """Which answer this is."""
        return (self.task, self.arm, self.seed, self.item, self.digest)

    @property
    def answer(self) -> ArmAnswer:
        """The answer as the arm gave it."""
        return ArmAnswer(
            item=self.item, arm=self.arm, text=self.text, scores=self.scores, details=self.details
        )

    def to_json(self) -> str:
        """As one line, without its end."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """What `to_json` gave.

        Raises:
            ValueError: The line is cut, or holds something else.
        """
        values: dict[str, Any] = json.loads(line)
        names = {spec.name for spec in dataclasses.fields(cls)}
        if not isinstance(values, dict) or values.keys() != names:
            raise ValueError("no record")
        for name in ("answers", "choices", "tokens", "read"):
            values[name] = tuple(values[name])
        return cls(**values)


def read_records(path: Path) -> list[Record]:
    """The records of a file; none where there is no file.

    Warns:
        BrokenRecordWarning: Lines cannot be read, as the last one after a kill; they are left out.
    """
    if not path.exists():
        return []
    records, broken = [], []
    # Not splitlines, which also splits at signs that a text may hold.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line.decode("utf-8")))
        except (ValueError, TypeError):
            broken.append(number)
    if broken:
        warnings.warn(
            f"{path} has {len(broken)} lines that cannot be read (the first is line {broken[0]}), "
            "as a run that was killed leaves behind; those items are answered again.",
            BrokenRecordWarning,
            stacklevel=2,
        )
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes a file of records, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.to_json() + "\n")
        _to_disk(file)


class RecordWriter:
    """Adds records to a file, each line whole and on the disk before the next is answered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, records: Iterable[Record]) -> None:
        """Adds records; a line that a kill had cut before them stays a line of its own."""
        lines = "".join(record.to_json() + "\n" for record in records)
        with self._path.open("ab+") as raw:
            if raw.tell():
                raw.seek(-1, os.SEEK_END)
                if raw.read(1) != b"\n":
                    raw.write(b"\n")
            raw.write(lines.encode("utf-8"))
            raw.flush()
            os.fsync(raw.fileno())


def _to_disk(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
