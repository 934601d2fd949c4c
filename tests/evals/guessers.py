"""Arms that read nothing, and one that is told: what every task is held against."""

import random
from collections.abc import Callable, Sequence

from aotoolkit.evals import ArmAnswer, EvalItem
from aotoolkit.evals.arms import item_seed
from aotoolkit.evals.tasks.base import PromptTask


def answers(
    items: Sequence[EvalItem], say: Callable[[EvalItem], str], *, scored: bool = False
) -> list[ArmAnswer]:
    """One answer an item; with `scored`, the choice said has the highest score too."""
    return [
        ArmAnswer(
            item=item.id,
            arm="guesser",
            text=say(item),
            scores={c: float(c == say(item)) for c in item.choices} if scored else {},
        )
        for item in items
    ]


def constant(text: str) -> Callable[[EvalItem], str]:
    """Says the same of every item."""
    return lambda _: text


def uniform(seed: int, choices: Sequence[str] = ()) -> Callable[[EvalItem], str]:
    """Draws one of the choices."""
    return lambda item: random.Random(item_seed(seed, item)).choice(item.choices or choices)


def by_question(seed: int) -> Callable[[EvalItem], str]:
    """Gives one answer to each question, whatever was read."""
    return lambda item: random.Random(f"{seed}{item.question}").choice(item.choices)


def told(item: EvalItem) -> str:
    """The answer."""
    return item.answers[0]


def mean_score(task: PromptTask, items: Sequence[EvalItem], given: Sequence[ArmAnswer]) -> float:
    """Mean over units of the mean within each: what a table shows."""
    units: dict[str, list[float]] = {}
    for item, answer in zip(items, given, strict=True):
        units.setdefault(item.unit, []).append(task.score(item, answer))
    return sum(sum(own) / len(own) for own in units.values()) / len(units)
