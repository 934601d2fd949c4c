"""Runs a suite: reads the items, looks for leaks, lets the arms answer, and makes the table.

Answers are kept as they are given, so that a run that was stopped goes on where it was, and one
with another arm or task answers only what is new. Several processes (`accelerate launch`) deal the
arms of the tasks among themselves; each reads all items, and the main one writes what they found.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from aotoolkit.atomic import replacing
from aotoolkit.errors import ArmNotApplicableError, EvalError, EvalLeakError
from aotoolkit.evals.arms import Arm
from aotoolkit.evals.confidences import PRECISION
from aotoolkit.evals.identity import answer_digest, arm_identity, item_identity
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.evals.records import Record, RecordKey, RecordWriter, read_records, write_records
from aotoolkit.evals.suite import ReadTask, Suite, oracle_seed
from aotoolkit.evals.table import EvalTable, tabulate
from aotoolkit.tracing import TracedModel

RESULTS_FILE = "results.jsonl"
EARLIER_FILE = "earlier.jsonl"
TABLE_FILE = "table.json"
_RANK_FILES = "results.rank*.jsonl"
# Answered together, and then on the disk: what a kill costs at most.
_ITEMS_AT_ONCE = 16
# A process that is done waits for the slowest, however long that takes.
_PATIENCE = timedelta(days=7)

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What a run found.

    Attributes:
        table: The table.
        records: Each answer with its score, task by task, arm by arm.
        seconds: How long this run took; answers that were there already cost nothing.
        folder: Where results are kept; None for nowhere.
    """

    table: EvalTable
    records: tuple[Record, ...]
    seconds: float
    folder: Path | None

    def to_dict(self) -> dict[str, object]:
        """The table as JSON has it, with the time that it took."""
        return {**self.table.to_dict(), "seconds": self.seconds}


class _LeftOut(NamedTuple):
    task: str
    arm: str
    reason: str


@dataclass(frozen=True)
class _Job:
    """One arm and the items of one task."""

    read: ReadTask
    arm: Arm
    digests: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]

    @property
    def keys(self) -> list[RecordKey]:
        name, arm, seed = self.read.task.name, self.arm.name, oracle_seed(self.arm)
        return [
            (name, arm, seed, item.id, digest)
            for item, digest in zip(self.read.items, self.digests, strict=True)
        ]

    def record(self, number: int, answer: ArmAnswer) -> Record:
        return Record.of(
            self.read.task,
            self.arm,
            self.read.items[number],
            answer,
            tokens=self.tokens[number],
            digest=self.digests[number],
        )


def run_suite(
    suite: Suite,
    model: TracedModel,
    *,
    out: str | os.PathLike[str] | None = None,
    seeds: Sequence[int] | None = None,
    precision: float = PRECISION,
    progress: bool = True,
) -> EvalResult:
    """Runs a suite, or goes on with it.

    Args:
        suite: Tasks, arms and leak checks.
        model: The target, with its adapters.
        out: Folder for `results.jsonl` (an answer a line) and `table.json`; a run that was stopped
            goes on there. Answers of earlier runs there that are not of this one (other arms,
            other items) are kept in `earlier.jsonl` and used where they fit again.
        seeds: Which training seeds of the oracles take part; default: all. Arms without a seed
            always do.
        precision: The share of right answers that abstaining is to reach, for the confidences.
        progress: Whether to show a progress bar.

    Raises:
        EvalLeakError: A leak was found; nothing was answered.
        EvalError: Tasks or arms that contradict themselves, no arm of these seeds, or a
            `precision` that is no share.
    """
    if not 0 < precision <= 1:
        raise EvalError(f"precision is {precision}; give a share above 0, up to 1.")
    started, state = time.monotonic(), _processes(model)
    read = [_of_seeds(entry.read(model), seeds) for entry in suite.entries]
    notes = [*suite.notes, *_refuse_leaks(suite, model, read, state)]
    folder = None if out is None else Path(out)
    known: dict[RecordKey, Record] = {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        known = _known(folder)
    state.wait_for_everyone()  # all have read what there is before anyone adds to it
    jobs = list(_jobs(model, read))
    mine = jobs[state.process_index :: state.num_processes]
    rank_file = _RANK_FILES.replace("*", str(state.process_index))
    writer = None if folder is None else RecordWriter(folder / rank_file)
    found, left_out = _gathered(
        state, lambda: _answer_all(mine, known, writer, progress and state.is_main_process)
    )
    records = _in_order(found, jobs)
    table = tabulate(
        suite.name,
        read,
        records,
        notes=[*notes, *_sentences(left_out)],
        precision=precision,
        comparisons=suite.comparisons,
    )
    result = EvalResult(
        table=table, records=tuple(records), seconds=time.monotonic() - started, folder=folder
    )
    if folder is not None and state.is_main_process:
        _finish(folder, result, known)
    state.wait_for_everyone()
    return result


def _processes(model: TracedModel) -> PartialState:
    """Which process this is, of all that a launcher started."""
    # Of one process alone accelerate's state stays as anyone else would have made it.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=several and model.device.type == "cpu", timeout=_PATIENCE)


def _of_seeds(read: ReadTask, seeds: Sequence[int] | None) -> ReadTask:
    if seeds is None:
        return read
    oracles = [arm for arm in read.arms if arm.kind == "oracle"]
    if oracles and all(oracle_seed(arm) is None for arm in oracles):
        raise EvalError(
            f"seeds is {list(seeds)}, but no oracle of the task {read.task.name!r} says which seed "
            "it was trained with. Leave seeds out."
        )
    kept = tuple(arm for arm in read.arms if oracle_seed(arm) in (None, *seeds))
    if not any(arm.kind == "oracle" for arm in kept) and kept != read.arms:
        there = sorted({str(oracle_seed(arm)) for arm in read.arms if arm.kind == "oracle"})
        raise EvalError(
            f"seeds is {list(seeds)}, but the oracles of the task {read.task.name!r} have the "
            f"seeds {', '.join(there)}. Give one of those, or leave seeds out."
        )
    return ReadTask(task=read.task, items=read.items, arms=kept)


def _refuse_leaks(
    suite: Suite, model: TracedModel, read: Sequence[ReadTask], state: PartialState
) -> list[str]:
    """What could not be checked; the main process looks, and tells the others."""

    def look() -> tuple[list[str], list[str]]:
        if not state.is_main_process:
            return [], []
        findings = [check.find(model, read) for check in suite.leak_checks]
        return [s for f in findings for s in f.leaks], [s for f in findings for s in f.notes]

    leaks, notes = _gathered(state, look)
    if leaks:
        raise EvalLeakError(
            f"The suite {suite.name!r} leaks, so it was not run: " + " ".join(leaks)
        )
    return notes


def _jobs(model: TracedModel, read: Sequence[ReadTask]) -> Iterator[_Job]:
    # Most arms answer several tasks, and the digests of their oracles take a while.
    identities: dict[int, str] = {}
    for one in read:
        items = [item_identity(item) for item in one.items]
        tokens = tuple(_tokens(model, item) for item in one.items)
        for arm in one.arms:
            if id(arm) not in identities:
                identities[id(arm)] = arm_identity(arm)
            company = items if _is_whole_task(arm) else []
            digests = tuple(
                answer_digest(identities[id(arm)], item, company=company) for item in items
            )
            yield _Job(one, arm, digests, tokens)


def _tokens(model: TracedModel, item: EvalItem) -> tuple[str, ...]:
    return model.encode(list(item.activations.context_ids)).tokens


def _is_whole_task(arm: Arm) -> bool:
    return getattr(arm, "whole_task", False)


def _answer_all(
    jobs: Sequence[_Job],
    known: Mapping[RecordKey, Record],
    writer: RecordWriter | None,
    progress: bool,
) -> tuple[list[Record], list[_LeftOut]]:
    """The records of these jobs, and which arms were left out."""
    records: list[Record] = []
    left_out: list[_LeftOut] = []
    total = sum(len(job.read.items) for job in jobs)
    with tqdm(total=total, unit="answer", disable=not progress) as bar:
        for job in jobs:
            bar.set_description(f"{job.read.task.name}: {job.arm.name}")
            own: list[Record] = []
            try:
                for part in _answer(job, known, writer):
                    own += part
                    bar.update(len(part))
            except ArmNotApplicableError as error:
                left_out.append(_LeftOut(job.read.task.name, job.arm.name, str(error)))
                bar.update(len(job.read.items) - len(own))
                continue
            records += own
    return records, left_out


def _answer(
    job: _Job, known: Mapping[RecordKey, Record], writer: RecordWriter | None
) -> Iterator[list[Record]]:
    """The records of a job's items, a few at a time; what is known is scored anew."""
    size = len(job.read.items) if _is_whole_task(job.arm) else _ITEMS_AT_ONCE
    keys = job.keys
    for start in range(0, len(keys), size):
        numbers = range(start, min(start + size, len(keys)))
        missing = [n for n in numbers if keys[n] not in known]
        asked = list(numbers) if missing and _is_whole_task(job.arm) else missing
        answers = {n: known[keys[n]].answer for n in numbers if keys[n] in known}
        answers |= dict(zip(asked, _ask(job, asked), strict=True))
        records = {n: job.record(n, answers[n]) for n in numbers}
        if writer is not None and missing:
            writer.write(records[n] for n in missing)
        yield list(records.values())


def _ask(job: _Job, numbers: Sequence[int]) -> list[ArmAnswer]:
    if not numbers:
        return []
    items = [job.read.items[n] for n in numbers]
    answers = job.arm.answer(items)
    if [answer.item for answer in answers] != [item.id for item in items]:
        raise EvalError(
            f"The arm {job.arm.name!r} was given {len(items)} items of the task "
            f"{job.read.task.name!r} and gave {len(answers)} answers, or to others. It must give "
            "one for each, in their order."
        )
    return answers


def _sentences(left_out: Iterable[_LeftOut]) -> list[str]:
    """A sentence for each task and reason, whichever arms it is the reason of."""
    arms: dict[tuple[str, str], list[str]] = {}
    for task, arm, reason in left_out:
        arms.setdefault((task, reason), []).append(arm)
    return [
        f"{task}: {', '.join(names)} {'was' if len(names) == 1 else 'were'} left out. {reason}"
        for (task, reason), names in arms.items()
    ]


def _in_order(records: Iterable[Record], jobs: Sequence[_Job]) -> list[Record]:
    """Task by task and arm by arm, whichever process answered."""
    by_place = {(r.task, r.arm, r.seed, r.item): r for r in records}
    places = [key[:4] for job in jobs for key in job.keys]
    return [by_place[place] for place in places if place in by_place]


def _gathered(
    state: PartialState, work: Callable[[], tuple[list[_T], list[_U]]]
) -> tuple[list[_T], list[_U]]:
    """What all processes found together; where one fails all do, instead of waiting for it."""
    error, own = None, ([], [])
    try:
        own = work()
    except Exception as failure:
        if state.num_processes == 1:
            raise
        error = failure
    said = "" if error is None else f"{type(error).__name__}: {error}"
    everyone = gather_object([(own, said)])
    if error is not None:
        raise error
    if failed := [message for _, message in everyone if message]:
        raise EvalError(f"Another process of this run failed, and so it ends. {failed[0]}")
    return (
        [one for (found, _), _ in everyone for one in found],
        [one for (_, more), _ in everyone for one in more],
    )


# The folder


def _known(folder: Path) -> dict[RecordKey, Record]:
    """What earlier runs in a folder answered, also those that were stopped."""
    files = [folder / EARLIER_FILE, folder / RESULTS_FILE, *sorted(folder.glob(_RANK_FILES))]
    return {record.key: record for path in files for record in read_records(path)}


def _finish(folder: Path, result: EvalResult, known: Mapping[RecordKey, Record]) -> None:
    """Writes the results; until the last is there, what the processes wrote stays."""
    keys = {record.key for record in result.records}
    earlier = [record for key, record in known.items() if key not in keys]
    if earlier:
        write_records(folder / EARLIER_FILE, earlier)
    else:
        (folder / EARLIER_FILE).unlink(missing_ok=True)
    write_records(folder / RESULTS_FILE, result.records)
    with replacing(folder / TABLE_FILE) as temporary:
        text = json.dumps(result.to_dict(), indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
    for path in folder.glob(_RANK_FILES):
        path.unlink()
