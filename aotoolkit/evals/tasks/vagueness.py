"""Vagueness and hallucination without a judge: against ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.metrics import Grade, fold, grade_answer, named
from aotoolkit.evals.tasks.base import PromptTask, Turns, as_turns


@dataclass(frozen=True, kw_only=True)
class KnownTruth:
    """A prompt of which it is known what is true, and what is true but general.

    Attributes:
        unit: What n counts: the organism's or the thing's name.
        prompt: The user's turn, or a chat.
        question: What is asked; empty for the task's.
        right: Words that name the truth itself.
        general: Words that are true of it and of more: its kind, its colour.
        adapter: The adapter of the target; None for the base.
    """

    unit: str
    prompt: Turns
    right: tuple[str, ...]
    general: tuple[str, ...] = ()
    question: str = ""
    adapter: str | None = None


@dataclass(kw_only=True, eq=False)
class Vagueness(PromptTask):
    """Grades answers: specific and right, right but general, wrong, or refusing.

    An answer that names the truths of several cases is wrong, so that nothing is gained by naming
    much. `general` is vagueness and `wrong` is hallucination.

    Attributes:
        cases: The cases.
        question: What is asked where a case has no question of its own.
    """

    cases: Sequence[KnownTruth]
    question: str
    name: str = "vagueness"
    unit = "organism"
    metric = "graded right"
    secondary = get_args(Grade)

    def __post_init__(self) -> None:
        for case in self.cases:
            both = {fold(word) for word in case.right} & {fold(word) for word in case.general}
            if both or not case.right:
                raise EvalError(
                    f"The case {case.unit!r} has right={case.right} and general={case.general}; "
                    "give at least one right word, and none that is general too."
                )
        self._right = {word for case in self.cases for word in case.right}

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        return [
            ItemSpec(
                id=f"{number}/{case.unit}",
                task=self.name,
                unit=case.unit,
                question=case.question or self.question,
                answers=case.right,
                prompt=as_turns(case.prompt),
                adapter=case.adapter,
                positions=self.positions,
                details={"right": list(case.right), "general": list(case.general)},
            )
            for number, case in enumerate(self.cases)
        ]

    def grade(self, item: EvalItem, answer: ArmAnswer) -> Grade:
        """The grade of an answer; see `grade_answer`."""
        right, general = item.details["right"], item.details["general"]
        grade = grade_answer(answer.text, right=right, general=general)
        own = {fold(word) for word in [*right, *general]}
        others = [word for word in self._right if fold(word) not in own]
        return "wrong" if grade in ("right", "general") and named(answer.text, others) else grade

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer is specific and right."""
        return float(self.grade(item, answer) == "right")

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer has the grade of this name."""
        assert name in self.secondary, name
        return float(self.grade(item, answer) == name)
