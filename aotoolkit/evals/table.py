"""The table of an evaluation: what each arm got on each task, beside what it must be compared with.

An oracle's figure alone says nothing. So each row has the paired difference of the task's best
oracle to it; a task whose skyline is not above chance is *void*, because what is not in the
activations cannot be read; and below the rows stand the claims that follow from them mechanically.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.comparisons import (
    ComparedPair,
    Comparison,
    TaskScores,
    compared,
    difference_of,
    sentences,
)
from aotoolkit.evals.confidences import PRECISION, ConfidenceRow, Confidences, confidences_of
from aotoolkit.evals.items import ASKED_ALIKE, SecondaryScores, SetScored, Task, chance_of
from aotoolkit.evals.records import Record
from aotoolkit.evals.statistics import (
    Difference,
    Estimate,
    SeedScores,
    hierarchical_bootstrap,
    holm,
)
from aotoolkit.evals.suite import ReadTask
from aotoolkit.oracle.controls import KEEPS_EVIDENCE

if TYPE_CHECKING:
    import pandas

# In the order of tables.
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one arm got on one task, by one metric.

    Attributes:
        task: The task's name.
        arm: The arm's name; oracles of several seeds are one row.
        kind: The arm's kind.
        metric: What the figures are.
        mean: Mean over seeds, over units, over items.
        low: Lower end of the 95 % interval.
        high: Its upper end.
        n: Number of units.
        unit: What n counts.
        void: Whether the task's skyline is not above chance, so that its figures show nothing.
        chance: What a guesser gets; NaN (None in JSON) for a further score, whose chance nobody
            states.
        num_items: Number of items.
        num_seeds: Number of oracles (training seeds).
        difference: The task's best oracle minus this arm, paired by item and unit, with Holm's
            correction over the arms of the task; None for that oracle itself, and for figures of a
            set, which no item has.
    """

    task: str
    arm: str
    kind: Kind
    metric: str
    mean: float
    low: float
    high: float
    n: int
    unit: str
    void: bool
    chance: float
    num_items: int
    num_seeds: int
    difference: Difference | None

    def __str__(self) -> str:
        figure = f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"void ({figure})" if self.void else figure

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return dataclasses.asdict(self) | {
            "chance": None if math.isnan(self.chance) else self.chance
        }


@dataclass(frozen=True, kw_only=True)
class EvalTable:
    """The rows of a suite.

    Attributes:
        suite: The suite's name.
        rows: Task by task, in each the main metric first, in that oracles, controls, baselines and
            skylines.
        notes: What must be known to read them: arms that were left out and why.
        secret_keeping: The tasks on which the target keeps what is asked to itself.
        confidences: What the oracles' confidences are worth.
        comparisons: Oracles beside each other, for the claims that a suite makes about them.
    """

    suite: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    secret_keeping: tuple[str, ...] = ()
    confidences: Confidences = field(default_factory=Confidences)
    comparisons: tuple[ComparedPair, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    def row(self, task: str, arm: str, metric: str | None = None) -> Row:
        """The row of an arm; by default that of the task's main metric.

        Raises:
            EvalError: There is none.
        """
        for row in self.rows:
            if (row.task, row.arm) == (task, arm) and metric in (None, row.metric):
                return row
        there = [f"{row.task}/{row.arm}/{row.metric}" for row in self.rows]
        raise EvalError(f"There is no row {task}/{arm}/{metric or 'any metric'}; there are {there}")

    def main_rows(self, task: str) -> list[Row]:
        """The rows of a task's main metric."""
        of_task = [row for row in self.rows if row.task == task]
        return [row for row in of_task if row.metric == of_task[0].metric]

    def why_void(self, task: str) -> str | None:
        """Why a task is void, in words; None where it is not."""
        rows = self.main_rows(task)
        if not any(row.void for row in rows):
            return None
        best = best_row(rows, "skyline")
        assert best is not None, "only a skyline makes a task void"
        figure = f"{best.mean:.2f} [{best.low:.2f}, {best.high:.2f}]"
        return (
            f"the best skyline, {best.arm}, has {figure}, which does not exclude chance "
            f"({best.chance:.2f}): what is asked may not be in these activations at all"
        )

    def claims(self) -> tuple[str, ...]:
        """What can be read off mechanically: oracle against baselines, controls against chance.

        And, where there are several, oracle against oracle.
        """
        return (
            *self._against_baselines(),
            self._controls(),
            *self._between_oracles(),
            *sentences(self.comparisons),
        )

    def _against_baselines(self) -> list[str]:
        voided = [task for task in self.secret_keeping if self.why_void(task)]
        ahead, behind, surely = [], [], []
        for task in self.secret_keeping:
            rows = self._alike(task)
            oracle, baseline = best_row(rows, "oracle"), best_row(rows, "baseline")
            if task in voided or oracle is None or baseline is None:
                continue
            (ahead if oracle.mean >= baseline.mean else behind).append(task)
            if baseline.difference is not None and baseline.difference.low > 0:
                surely.append(task)
        compared = len(ahead) + len(behind)
        if not compared:
            return ["No secret-keeping task has both an oracle and a baseline and is not void."]
        said = (
            f"The best oracle is at or above the best baseline on {len(ahead)} of {compared} "
            f"secret-keeping tasks{_listed(ahead)}; on {len(surely)} the interval of the paired "
            f"difference excludes 0{_listed(surely)}. Where a task has a forced choice, by that."
        )
        if voided:
            said += f" Void and not counted: {', '.join(voided)}."
        return [said]

    def _alike(self, task: str) -> list[Row]:
        """The rows in which arms that only choose stand beside those that answer freely."""
        alike = [row for row in self.rows if (row.task, row.metric) == (task, ASKED_ALIKE)]
        return alike or self.main_rows(task)

    def _between_oracles(self) -> list[str]:
        ahead: dict[str, list[str]] = {}
        surely: dict[str, list[str]] = {}
        compared = 0
        for task in self.tasks:
            rows = [row for row in self._alike(task) if row.kind == "oracle"]
            best = best_row(rows, "oracle")
            # A figure of all items together has no paired difference.
            others = [row.difference for row in rows if row is not best and row.difference]
            if self.why_void(task) or best is None or not others:
                continue
            compared += 1
            if any(row.mean == best.mean for row in rows if row is not best):
                continue
            ahead.setdefault(best.arm, []).append(task)
            if all(difference.low > 0 for difference in others):
                surely.setdefault(best.arm, []).append(task)
        return [
            f"Of the oracles, {arm} is ahead on {len(tasks)} of {compared} tasks{_listed(tasks)}; "
            f"on {len(surely.get(arm, []))} the interval of the paired difference excludes 0"
            f"{_listed(surely.get(arm, []))}."
            for arm, tasks in ahead.items()
        ]

    def _controls(self) -> str:
        above = [
            f"{row.task}: {row.arm} {row} (chance {row.chance:.2f})"
            + (", which keeps the evidence" if keeps_evidence(row) else "")
            for task in self.tasks
            for row in self.main_rows(task)
            if row.kind == "control" and row.low > row.chance
        ]
        if not any(row.kind == "control" for row in self.rows):
            return "No control was run, so nothing tells reading from guessing."
        if not above:
            return "No control lies above chance with an interval that excludes it."
        return "Controls above chance, with an interval that excludes it: " + "; ".join(above) + "."

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON has it."""
        return {
            "suite": self.suite,
            "rows": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
            "claims": list(self.claims()),
            "secret_keeping": list(self.secret_keeping),
            "confidence": [row.to_dict() for row in self.confidences.rows],
            "comparisons": [pair.to_dict() for pair in self.comparisons],
        }

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for each row; the difference in columns `difference_mean` and so on."""
        import pandas

        return pandas.json_normalize([row.to_dict() for row in self.rows], sep="_")

    def render(self, console: Console) -> None:
        """Prints a block for each task, then the notes and the claims."""
        for task in self.tasks:
            self._render_task(console, task)
        if self.confidences.together:
            _render_confidences(console, self.confidences.together)
        if self.comparisons:
            _render_comparisons(console, self.comparisons)
        for heading, said in (("Notes", self.notes), ("What the table says", self.claims())):
            if said:
                console.print(f"[bold]{heading}[/bold]")
                for sentence in said:
                    console.print(f"  {_printable(sentence)}", markup=False, highlight=False)
        console.print(
            "Means with 95 % bootstrap intervals over units. Difference: the task's best oracle "
            "minus the arm, paired, with its own interval; p after Holm's correction for all arms "
            "of the task.",
            highlight=False,
        )

    def _render_task(self, console: Console, task: str) -> None:
        main = self.main_rows(task)
        first = main[0]
        title = f"{task}: {first.metric}"
        if task in self.secret_keeping:
            title += ", secret-keeping"
        why = self.why_void(task)
        void = f"\nVOID: {_printable(why)}" if why else ""
        table = Table(
            title=escape(_printable(title) + void),
            caption=escape(
                f"unit: {first.unit}, {first.num_items} items, chance {first.chance:.2f}"
            ),
            title_justify="left",
            caption_justify="left",
        )
        for name in ("arm", "kind"):
            table.add_column(name)
        for name in ("mean", "n", "oracle minus arm"):
            table.add_column(name, justify="right")
        metric = first.metric
        for row in (row for row in self.rows if row.task == task):
            if row.metric != metric:
                metric = row.metric
                table.add_section()
                table.add_row(escape(_printable(metric)), style="italic")
            seeds = f", {row.num_seeds} seeds" if row.num_seeds > 1 else ""
            table.add_row(
                escape(_printable(row.arm)),
                row.kind,
                str(row).replace("[", r"\["),
                f"{row.n}{seeds}",
                _difference_text(row.difference),
                style="bold" if row.kind == "oracle" else None,
            )
        console.print(table)


def tabulate(
    suite: str,
    read: Sequence[ReadTask],
    records: Sequence[Record],
    *,
    notes: Sequence[str] = (),
    precision: float = PRECISION,
    comparisons: Sequence[Comparison] = (),
    seed: int = 0,
) -> EvalTable:
    """The table of the answers.

    Args:
        suite: Name of the suite.
        read: Its tasks, with the items that were answered.
        records: The answers; an arm that answered a task answered all its items.
        notes: What must be known to read it.
        precision: The share of right answers that abstaining is to reach.
        comparisons: The suite's claims about its oracles.
        seed: Of the bootstraps.

    Raises:
        ScoreError: An arm did not answer all items, or other ones.
        CalibrationError: `precision` is not a share above 0.
    """
    rows, more, scored = [], list(notes), []
    for one in read:
        own = [record for record in records if record.task == one.task.name]
        of_task = _task_rows(one, own, seed)
        rows += of_task
        if comparisons and of_task:
            scored.append(_oracle_scores(one, own, void=of_task[0].void))
        if not any(arm.kind == "skyline" for arm in one.arms):
            more.append(
                f"{one.task.name} has no skyline, so nothing tells whether what is asked is in the "
                "activations at all."
            )
        oracles = list(dict.fromkeys(r.arm for r in own if r.kind == "oracle"))
        if len(oracles) > 1:
            more.append(
                f"{one.task.name} has {len(oracles)} oracles; differences are to the one that does "
                "best on these very items, which is partly luck."
            )
    keeping = tuple(one.task.name for one in read if one.task.secret_keeping)
    there = {row.task for row in rows}
    return EvalTable(
        suite=suite,
        rows=tuple(rows),
        notes=tuple(more),
        secret_keeping=tuple(name for name in keeping if name in there),
        confidences=confidences_of(
            records, {one.task.name: one.task.unit for one in read}, precision=precision, seed=seed
        ),
        comparisons=compared(comparisons, scored, seed=seed),
    )


# arm -> seed -> unit -> scores of its items
_ArmScores = Mapping[str, SeedScores]


def _task_rows(read: ReadTask, records: Sequence[Record], seed: int) -> list[Row]:
    task, order = read.task, {item.id: number for number, item in enumerate(read.items)}
    kinds: dict[str, Kind] = {}
    for kind in KINDS:
        kinds |= {arm.name: kind for arm in read.arms if arm.kind == kind}
    ordered = sorted(records, key=lambda record: order[record.item])
    answered = [arm for arm in kinds if any(record.arm == arm for record in ordered)]
    if not answered:
        return []
    chance = chance_of(task, read.items)

    main = _scores(answered, ordered, lambda record: record.correct)
    if isinstance(task, SetScored):
        estimates = {arm: _set_estimate(task, read, ordered, arm, seed) for arm in answered}
        differences: Mapping[str, Difference] = {}
    else:
        estimates = _estimates(main, task, seed)
        differences = _differences(main, estimates, kinds, task, seed)
    sky = [estimates[arm] for arm in answered if kinds[arm] == "skyline"]
    best = max(sky, key=lambda estimate: estimate.mean, default=None)
    void = best is not None and best.low <= chance

    def rows(
        metric: str,
        estimates: Mapping[str, Estimate],
        differences: Mapping[str, Difference],
        chance: float,
    ) -> list[Row]:
        return [
            Row(
                task=task.name,
                arm=arm,
                kind=kinds[arm],
                metric=metric,
                mean=estimates[arm].mean,
                low=estimates[arm].low,
                high=estimates[arm].high,
                n=estimates[arm].n,
                unit=estimates[arm].unit,
                void=void,
                chance=chance,
                num_items=len(read.items),
                num_seeds=len(main[arm]),
                difference=differences.get(arm),
            )
            for arm in answered
        ]

    found = rows(task.metric, estimates, differences, chance)
    for name in task.secondary if isinstance(task, SecondaryScores) else ():
        scores = _scores(answered, ordered, lambda record, name=name: record.secondary[name])
        further = _estimates(scores, task, seed)
        found += rows(name, further, _differences(scores, further, kinds, task, seed), math.nan)
    return found


def _scores(
    arms: Sequence[str], records: Sequence[Record], score: Callable[[Record], float]
) -> _ArmScores:
    found: dict[str, dict[Hashable, dict[Hashable, list[float]]]] = {arm: {} for arm in arms}
    for record in records:
        by_unit = found[record.arm].setdefault(record.seed, {})
        by_unit.setdefault(record.unit, []).append(score(record))
    return found


def _estimates(scores: _ArmScores, task: Task, seed: int) -> dict[str, Estimate]:
    return {
        arm: hierarchical_bootstrap(by_seed, unit=task.unit, seed=seed, bounds=(0.0, 1.0))
        for arm, by_seed in scores.items()
    }


def _differences(
    scores: _ArmScores,
    estimates: Mapping[str, Estimate],
    kinds: Mapping[str, Kind],
    task: Task,
    seed: int,
) -> dict[str, Difference]:
    oracles = [arm for arm in scores if kinds[arm] == "oracle"]
    if not oracles:
        return {}
    ours = max(oracles, key=lambda arm: estimates[arm].mean)
    found: dict[str, Difference] = {}
    for arm, theirs in scores.items():
        if arm == ours:
            continue
        found[arm] = difference_of(scores[ours], theirs, unit=task.unit, seed=seed)
    corrected = holm({arm: difference.p_value for arm, difference in found.items()})
    return {
        arm: replace(difference, p_holm=corrected[arm], num_comparisons=len(found))
        for arm, difference in found.items()
    }


def _oracle_scores(read: ReadTask, records: Sequence[Record], *, void: bool) -> TaskScores:
    """What a task's oracles are compared by, item by item."""
    task, order = read.task, {item.id: number for number, item in enumerate(read.items)}
    oracles = sorted(
        (record for record in records if record.kind == "oracle"),
        key=lambda record: order[record.item],
    )
    arms = list(dict.fromkeys(record.arm for record in oracles))
    scores: dict[str, _ArmScores] = {}
    if not isinstance(task, SetScored):
        scores[task.metric] = _scores(arms, oracles, lambda record: record.correct)
    for name in task.secondary if isinstance(task, SecondaryScores) else ():
        scores[name] = _scores(arms, oracles, lambda record, name=name: record.secondary[name])
    return TaskScores(task=task.name, unit=task.unit, void=void, scores=scores)


def _set_estimate(
    task: SetScored, read: ReadTask, records: Sequence[Record], arm: str, seed: int
) -> Estimate:
    by_seed: dict[int | None, list[Record]] = {}
    for record in records:
        if record.arm == arm:
            by_seed.setdefault(record.seed, []).append(record)
    each = [
        task.estimate(read.items, [record.answer for record in own], seed=seed)
        for own in by_seed.values()
    ]
    # The seeds read the same units, so the ends of their mean's interval lie within these.
    mean, low, high = (
        math.fsum(getattr(estimate, end) for estimate in each) / len(each)
        for end in ("mean", "low", "high")
    )
    return replace(each[0], mean=mean, low=low, high=high, num_seeds=len(each))


def best_row(rows: Sequence[Row], kind: Kind) -> Row | None:
    """The highest mean of a kind; the first of several alike."""
    return max((row for row in rows if row.kind == kind), key=lambda row: row.mean, default=None)


def keeps_evidence(row: Row) -> bool:
    """Whether it is a control that keeps the evidence: above chance, order does not matter."""
    return row.kind == "control" and row.arm.startswith(tuple(KEEPS_EVIDENCE))


def _listed(tasks: Sequence[str]) -> str:
    return f" ({'; '.join(tasks)})" if tasks else ""


def _render_confidences(console: Console, rows: Sequence[ConfidenceRow]) -> None:
    table = Table(
        title="Confidence of the oracles, over all tasks",
        caption="after: calibrated by a temperature fitted on other units; right: precision of the "
        "answers given (those above a threshold for the precision that was asked for, chosen on "
        "other units)",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("arm", "confidence"):
        table.add_column(name)
    for name in ("n", "ECE", "after", "Brier", "AUROC", "given", "right"):
        table.add_column(name, justify="right")
    for row in rows:
        found, abstention = row.measured, row.abstention
        reached = None if abstention is None else abstention.reached
        table.add_row(
            escape(_printable(row.arm)),
            escape(_printable(row.kind)),
            str(found.n),
            f"{found.ece:.3f}",
            "" if row.calibrated is None else f"{row.calibrated.ece:.3f}",
            f"{found.brier:.3f}",
            "" if found.auroc is None else f"{found.auroc:.2f}",
            "" if abstention is None else f"{abstention.coverage:.0%}",
            "" if reached is None else escape(str(reached)),
        )
    console.print(table)


def _render_comparisons(console: Console, pairs: Sequence[ComparedPair]) -> None:
    for claim in dict.fromkeys(pair.claim for pair in pairs):
        table = Table(
            title=escape(_printable(f"Claim: {claim}")),
            caption="paired by item and unit; p (of these seeds) after Holm's correction over this "
            "table; decided by p below .05 and an interval (over seeds too) without 0",
            title_justify="left",
            caption_justify="left",
        )
        for name in ("oracle", "against", "task", "score"):
            table.add_column(name)
        for name in ("difference", "n"):
            table.add_column(name, justify="right")
        table.add_column("the claim")
        for pair in (pair for pair in pairs if pair.claim == claim):
            table.add_row(
                *(
                    escape(_printable(text))
                    for text in (pair.higher, pair.lower, pair.task, pair.metric)
                ),
                _difference_text(pair.difference),
                f"{pair.difference.n}"
                + (f", {pair.difference.num_seeds} seeds" if pair.difference.num_seeds > 1 else ""),
                "void" if pair.void else pair.verdict,
                style=None if pair.void or pair.verdict == "is undecided" else "bold",
            )
        console.print(table)


def _difference_text(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return (
        rf"{difference.mean:+.2f} \[{difference.low:+.2f}, {difference.high:+.2f}] "
        f"p={difference.p_holm:.2g}"
    )


def _printable(text: str) -> str:
    """Without control characters: names come from files, and must not drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
