"""Several tasks, each with the arms that answer it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aotoolkit.evals.arms import Arm
from aotoolkit.evals.items import EvalItem, Task


@dataclass(frozen=True, kw_only=True)
class SuiteEntry:
    """A task and its arms.

    Attributes:
        task: The task.
        arms: The arms, or what makes them once the items are read (a probe is fitted then).
    """

    task: Task
    arms: tuple[Arm, ...] | Callable[[Sequence[EvalItem]], Sequence[Arm]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Several tasks.

    Attributes:
        name: As it stands over the table.
        entries: The tasks, in the order of the table.
    """

    name: str
    entries: tuple[SuiteEntry, ...]
