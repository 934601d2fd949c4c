"""What figures and the report show of a table beside its rows: ablations and ladders.

A ladder is the same question in steps from easy to hard, so that not only the top is reported.
Where an oracle fails at the top, the first rung at which it fails says what is missing: the reading
itself, entities it has not seen, facts that only fine-tuning put there, or wordings that it was
never asked. A ladder is written down in one of two ways:

- Items of one task that have `details["rung"]`. Rungs stand in natural order ("L2" before
  "L10"), and a rung's figure is the mean score of its items.
- Tasks whose names are alike up to the last "/", such as "people/seen" and "people/unseen". Rungs
  stand in the order of the table, and a rung's figure is the one of the table.

One rung alone is no ladder.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aotoolkit.evals.arms import Kind
from aotoolkit.evals.records import RUNG, Record
from aotoolkit.evals.statistics import Estimate, bootstrap_mean
from aotoolkit.evals.table import KINDS, Row

if TYPE_CHECKING:
    from aotoolkit.evals.runner import EvalResult

_RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What each arm reached on each rung.

    Attributes:
        name: The task, or what the names of the tasks share.
        metric: What the figures are.
        rungs: From the first to the last.
        kinds: Arm -> its kind, in the order of the table.
        figures: (rung, arm) -> what the arm reached there; an arm may lack a rung.
        chance: Rung -> what a guesser reaches there.
        void: Rungs whose skyline is at chance.
    """

    name: str
    metric: str
    rungs: tuple[str, ...]
    kinds: Mapping[str, Kind]
    figures: Mapping[tuple[str, str], Estimate]
    chance: Mapping[str, float]
    void: frozenset[str]

    def best_arms(self) -> dict[str, Kind]:
        """Every oracle, and of each other kind the arm with the highest mean over the rungs."""
        chosen: dict[str, Kind] = {}
        for kind in KINDS:
            arms = [arm for arm, own in self.kinds.items() if own == kind]
            reached = {arm: means for arm in arms if (means := self._means(arm))}
            if reached and kind != "oracle":
                # An arm that lacks the hard rungs must not win by that.
                arms = [max(reached, key=lambda arm, r=reached: (len(r[arm]), _mean(r[arm])))]
            chosen |= {arm: kind for arm in arms if arm in reached}
        return chosen

    def _means(self, arm: str) -> list[float]:
        return [self.figures[rung, arm].mean for rung in self.rungs if (rung, arm) in self.figures]


def ablation_rows(result: "EvalResult") -> dict[str, tuple[Row, ...]]:
    """Task -> the rows of its oracles, of the tasks that have two or more."""
    oracles = {
        task: tuple(row for row in result.table.main_rows(task) if row.kind == "oracle")
        for task in result.table.tasks
    }
    return {task: rows for task, rows in oracles.items() if len(rows) > 1}


def ladders(result: "EvalResult") -> tuple[Ladder, ...]:
    """The ladders among the tasks of a suite; those of items first."""
    return *_of_items(result), *_of_tasks(result)


def _of_items(result: "EvalResult") -> Iterable[Ladder]:
    by_task: dict[str, list[Record]] = {}
    for record in result.records:
        if RUNG in record.details:
            by_task.setdefault(record.task, []).append(record)
    for task, records in by_task.items():
        rungs = sorted({str(record.details[RUNG]) for record in records}, key=_natural)
        if len(rungs) < 2 or task not in result.table.tasks:
            continue
        rows = result.table.main_rows(task)
        scores: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
        guesses: dict[str, list[float]] = {}
        for record in records:
            rung = str(record.details[RUNG])
            of_unit = scores.setdefault((rung, record.arm), {}).setdefault(record.unit, {})
            of_unit.setdefault(record.item, []).append(record.correct)
            right = len(set(record.choices) & set(record.answers))
            guesses.setdefault(rung, []).append(right / len(record.choices) if right else 0.0)
        yield Ladder(
            name=task,
            metric="mean score of an item",
            rungs=tuple(rungs),
            kinds={row.arm: row.kind for row in rows},
            figures={
                key: bootstrap_mean(
                    # Seeds first: an item that three seeds answered is still one item.
                    [[_mean(seeds) for seeds in items.values()] for items in units.values()],
                    resamples=_RESAMPLES,
                    unit=rows[0].unit,
                    bounds=(0.0, 1.0),
                )
                for key, units in scores.items()
            },
            chance={rung: _mean(values) for rung, values in guesses.items()},
            void=frozenset(rungs if rows[0].void else ()),
        )


def _of_tasks(result: "EvalResult") -> Iterable[Ladder]:
    families: dict[str, list[str]] = {}
    for task in result.table.tasks:
        stem, slash, rung = task.rpartition("/")
        if slash and stem and rung:
            families.setdefault(stem, []).append(task)
    for stem, tasks in families.items():
        if len(tasks) < 2:
            continue
        rows = [
            (task.removeprefix(f"{stem}/"), row)
            for task in tasks
            for row in result.table.main_rows(task)
        ]
        yield Ladder(
            name=stem,
            metric=", ".join(dict.fromkeys(row.metric for _, row in rows)),
            rungs=tuple(dict.fromkeys(rung for rung, _ in rows)),
            kinds={row.arm: row.kind for _, row in rows},
            figures={
                (rung, row.arm): Estimate(
                    row.mean, row.low, row.high, row.n, row.unit, row.num_seeds
                )
                for rung, row in rows
            },
            chance={rung: row.chance for rung, row in rows},
            void=frozenset(rung for rung, row in rows if row.void),
        )


def _natural(name: str) -> list[tuple[int, Any]]:
    """Numbers in a name count as numbers."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
