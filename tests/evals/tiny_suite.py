"""A suite whose answers are planted in the activations, for tests of running and tabulating."""

import dataclasses
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny_items
import torch
from tiny_items import CHOICES

from aotoolkit.errors import ArmNotApplicableError
from aotoolkit.evals import ArmAnswer, EvalItem, Suite, SuiteEntry, run_suite
from aotoolkit.tracing import TracedModel


class Planted:
    """Items whose vectors all hold the number of the answer, from 1 on."""

    unit = "organism"
    metric = "names the word"
    secret_keeping = True

    def __init__(self, name: str = "planted", *, units: int = 6, prompts: int = 3) -> None:
        self.name = name
        self.units = units
        self.prompts = prompts

    def items(self, model: TracedModel) -> list[EvalItem]:
        (read,) = tiny_items.items(model, 1, task=self.name)
        return [
            plant(read, unit % 3, id=f"{unit}/{prompt}", unit=f"unit {unit}")
            for unit in range(self.units)
            for prompt in range(self.prompts)
        ]

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        return float(answer.choice in item.answers)


def plant(read: EvalItem, number: int, **changes: Any) -> EvalItem:
    vectors = torch.full_like(read.activations.vectors, float(number + 1))
    return dataclasses.replace(
        read,
        answers=(CHOICES[number],),
        activations=dataclasses.replace(read.activations, vectors=vectors),
        **changes,
    )


class Told:
    """Reads the answer out of the vectors; `_answered` lists the items of each call."""

    def __init__(self, name: str = "oracle", kind: str = "oracle", *, version: int = 1) -> None:
        self.name = name
        self.kind = kind
        self.version = version
        self._answered: list[list[str]] = []
        self._dies_in: int | None = None
        self._dies: Callable[[], None] = interrupt

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        if self._dies_in == len(self._answered):
            self._dies()
        self._answered.append([item.id for item in items])
        return [says(self, item, self._chosen(item)) for item in items]

    def _chosen(self, item: EvalItem) -> str:
        return CHOICES[round(float(item.activations.vectors.mean())) - 1]


def interrupt() -> None:
    raise KeyboardInterrupt


class Guesser(Told):
    """Looks at nothing."""

    def __init__(self, name: str = "guesser", kind: str = "baseline") -> None:
        super().__init__(name, kind)

    def _chosen(self, item: EvalItem) -> str:
        return CHOICES[0]


class HalfTold(Told):
    """Reads the first unit of each three, and says of what it reads nothing a wrong thing."""

    def _chosen(self, item: EvalItem) -> str:
        right = CHOICES.index(super()._chosen(item))
        return CHOICES[right if right == 0 else (right + 1) % 3]


class NotApplicable(Told):
    """Answers no items but the first few."""

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        if "0/0" not in [item.id for item in items]:
            raise ArmNotApplicableError("This arm knows the first items only.")
        return super().answer(items)


def says(arm: Any, item: EvalItem, choice: str) -> ArmAnswer:
    scores = {name: float(name == choice) for name in item.choices}
    return ArmAnswer(item=item.id, arm=arm.name, text=choice, scores=scores)


def suite(*arms: Any, task: Any = None, **changes: Any) -> Suite:
    return Suite(name="tiny", entries=(SuiteEntry(task=task or Planted(), arms=arms),), **changes)


# In processes of their own


def kill(out: Path) -> None:
    """Kills this process, with a line half on the disk."""
    with next(out.glob("results.rank*.jsonl")).open("a") as file:
        file.write('{"task": "plan')
    os.kill(os.getpid(), signal.SIGKILL)


def run_in_process(
    folder: str, *, environment: dict[str, str] | None = None, killed: bool = False
) -> None:
    """Runs two tasks with four arms in `folder/out`."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    root = Path(folder)
    model = tiny_items.target(root / f"model{os.getpid()}")
    out = root / "out"
    oracle = Told()
    if killed:
        oracle._dies_in, oracle._dies = 2, lambda: kill(out)
    arms = (oracle, Guesser("blind", "control"), Guesser(), Told("probe", "skyline"))
    entries = tuple(SuiteEntry(task=Planted(name, units=12), arms=arms) for name in ("one", "two"))
    result = run_suite(Suite(name="tiny", entries=entries), model, out=out, progress=False)
    assert len(result.records) == 2 * 4 * 36
    (root / f"calls{os.environ.get('RANK', '0')}").write_text(
        str(sum(len(call) for arm in arms for call in arm._answered))
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
