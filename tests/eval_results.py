"""Results of an evaluation, made up, for figures and reports."""

from typing import Any

from aotoolkit.evals.confidences import confidences_of
from aotoolkit.evals.records import Record
from aotoolkit.evals.runner import EvalResult
from aotoolkit.evals.statistics import Difference
from aotoolkit.evals.table import EvalTable, Row


def row(task: str, arm: str, kind: Any, mean: float, **changes: Any) -> Row:
    """A row of 4 organisms."""
    values: dict[str, Any] = {
        "metric": "names the word",
        "low": max(0.0, mean - 0.1),
        "high": min(1.0, mean + 0.1),
        "n": 4,
        "unit": "organism",
        "void": False,
        "chance": 0.25,
        "num_items": 8,
        "num_seeds": 1,
        "difference": None,
    }
    return Row(task=task, arm=arm, kind=kind, mean=mean, **(values | changes))


def difference(mean: float) -> Difference:
    """Of 4 organisms, with an interval of 0.2."""
    return Difference(mean, mean - 0.1, mean + 0.1, 4, p_value=0.01, p_holm=0.02, num_comparisons=2)


def record(number: int = 0, arm: str = "oracle", kind: Any = "oracle", **changes: Any) -> Record:
    """An answer to item `number`."""
    values: dict[str, Any] = {
        "task": "taboo",
        "metric": "names the word",
        "seed": None,
        "item": f"item {number}",
        "unit": f"organism {number % 4}",
        "question": "What is the secret word?",
        "answers": ("lamp",),
        "choices": ("lamp", "salt", "tree", "shoe"),
        "tokens": ("<|user|>", "Give", " me", " a", " hint", ".", "\n"),
        "read": (4, 5),
        "text": "The word is lamp.",
        "scores": {"lamp": -0.5, "salt": -1.5},
        "correct": 1.0,
        "digest": "",
    }
    return Record(arm=arm, kind=kind, **(values | changes))


def result(rows: list[Row], records: list[Record] | None = None, **changes: Any) -> EvalResult:
    """The result of a suite."""
    confidences = confidences_of(records or (), {one.task: one.unit for one in rows})
    table = EvalTable(suite="tiny", rows=tuple(rows), confidences=confidences, **changes)
    return EvalResult(table=table, records=tuple(records or ()), seconds=61.0, folder=None)


def arms(task: str, **changes: Any) -> list[Row]:
    """A row of each kind, two oracles."""
    return [
        row(task, "full", "oracle", 0.75, **changes),
        row(task, "plain", "oracle", 0.5, **changes | {"difference": difference(0.25)}),
        row(task, "base", "control", 0.25, **changes | {"difference": difference(0.5)}),
        row(task, "lens", "baseline", 0.5, **changes | {"difference": difference(0.25)}),
        row(task, "probe", "skyline", 0.9, **changes | {"difference": difference(-0.15)}),
    ]
