"""What is evaluated together: tasks and the arms that answer them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aotoolkit.evals.arms import Arm
from aotoolkit.evals.items import EvalItem, Task


@dataclass(frozen=True, kw_only=True)
class SuiteEntry:
    """A task and its arms.

    Attributes:
        task: The task.
        arms: Who answers it; or a function that makes them from the items that were read, such as
            a probe of the layers that they hold.
    """

    task: Task
    arms: Sequence[Arm] | Callable[[Sequence[EvalItem]], Sequence[Arm]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are run and printed together.

    Attributes:
        name: As it stands in tables.
        entries: The tasks with their arms.
        leak_checks: What is checked before anything is answered; a leak fails the run.
        notes: What a reader of the table must know, in sentences.
    """

    name: str
    entries: tuple[SuiteEntry, ...]
    leak_checks: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
