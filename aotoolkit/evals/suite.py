"""What is evaluated together: tasks, the arms that answer them, and what must not leak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import Arm
from aotoolkit.evals.comparisons import Comparison
from aotoolkit.evals.items import EvalItem, Task
from aotoolkit.tracing import TracedModel

if TYPE_CHECKING:
    from aotoolkit.evals.leaks import LeakCheck


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """A task with its items read and its arms made.

    Attributes:
        task: The task.
        items: Its items, at least one.
        arms: Who answers them; each name stands for one kind, and once for each oracle seed.
    """

    task: Task
    items: tuple[EvalItem, ...]
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        name = self.task.name
        if not self.items:
            raise EvalError(f"The task {name!r} has no item; give it one, or leave it out.")
        ids = [item.id for item in self.items]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise EvalError(f"The task {name!r} has several items of the ids {twice[:5]}.")
        if others := [item.id for item in self.items if item.task != name]:
            raise EvalError(
                f"Items of the task {name!r} say that they are of another: {others[:5]}. Write the "
                "task's name into their specs."
            )
        if not self.arms:
            raise EvalError(f"The task {name!r} has no arm; give it an oracle at least.")
        keys = [(arm.name, oracle_seed(arm)) for arm in self.arms]
        if again := sorted({str(arm) for arm, seed in keys if keys.count((arm, seed)) > 1}):
            raise EvalError(
                f"The task {name!r} has several arms named {again[0]!r} of one oracle seed. Name "
                "them apart, or give those of several training seeds their seed."
            )
        kinds: dict[str, str] = {}
        for arm in self.arms:
            if kinds.setdefault(arm.name, arm.kind) != arm.kind:
                raise EvalError(
                    f"The task {name!r} has arms named {arm.name!r} of the kinds "
                    f"{kinds[arm.name]} and {arm.kind}; name them apart."
                )


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

    def read(self, model: TracedModel) -> ReadTask:
        """Reads the items and makes the arms.

        Raises:
            EvalError: There is no item or arm, or several cannot be told apart.
        """
        items = tuple(self.task.items(model))
        arms = self.arms(items) if callable(self.arms) else self.arms
        return ReadTask(task=self.task, items=items, arms=tuple(arms))


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are run and printed together.

    Attributes:
        name: As it stands in tables.
        entries: The tasks with their arms.
        leak_checks: What is checked before anything is answered; a leak fails the run.
        notes: What a reader of the table must know, in sentences.
        comparisons: Claims about its oracles, which the table decides.
    """

    name: str
    entries: tuple[SuiteEntry, ...]
    leak_checks: "tuple[LeakCheck, ...]" = ()
    notes: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        if not self.entries:
            raise EvalError(f"The suite {self.name!r} has no task; give it one.")
        for entry in self.entries:
            lacking = [
                name
                for name in ("name", "unit", "metric", "secret_keeping", "items", "score")
                if not hasattr(entry.task, name)
            ]
            if lacking:
                raise EvalError(
                    f"The task {entry.task!r} has no {', '.join(lacking)}; see "
                    "aotoolkit.evals.Task for what a task has."
                )
        names = [entry.task.name for entry in self.entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EvalError(f"The suite {self.name!r} has several tasks named {twice[0]!r}.")


def oracle_seed(arm: Arm) -> int | None:
    """The training seed of the oracle that an arm asks; None where it has none of its own."""
    return getattr(arm, "oracle_seed", None)
