"""Questions about the text behind the activations, answered freely."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.metrics import rouge_l, token_f1
from aotoolkit.evals.tasks.base import PromptTask, Turns, as_turns

Kind = Literal["classification", "fact", "gist"]


@dataclass(frozen=True, kw_only=True)
class TextQuestion:
    """A question about a text.

    Attributes:
        text: The user's turn, or a chat.
        question: The question.
        answers: References; the nearest counts.
        kind: What is asked for: a class of the text, a fact that it states, or its gist.
        unit: Name of the text; several questions about one are one unit.
    """

    text: Turns
    question: str
    answers: tuple[str, ...]
    kind: Kind
    unit: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise EvalError(f"kind is {self.kind!r}; give one of {get_args(Kind)}.")


@dataclass(kw_only=True, eq=False)
class GenerativeQA(PromptTask):
    """Answers questions about texts in its own words.

    Long references are answered in many wordings, so the score is for comparing arms; a text-only
    reader shows what is within reach. Give each kind of question a task of its own.

    Attributes:
        questions: The questions.
        adapter: The adapter of the target; default: the base.
    """

    questions: Sequence[TextQuestion]
    adapter: str | None = None
    name: str = "generative_qa"
    unit = "text"
    metric = "token F1"
    secondary = ("ROUGE-L",)

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        return [
            ItemSpec(
                id=f"{number}/{asked.unit}",
                task=self.name,
                unit=asked.unit,
                question=asked.question,
                answers=asked.answers,
                prompt=as_turns(asked.text),
                adapter=self.adapter,
                positions=self.positions,
                details={"kind": asked.kind},
            )
            for number, asked in enumerate(self.questions)
        ]

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Token F1 with the nearest reference."""
        return token_f1(answer.text, item.answers)

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """ROUGE-L with the nearest reference."""
        assert name in self.secondary, name
        return rouge_l(answer.text, item.answers)

    def chance(self, items: Sequence[EvalItem]) -> float:
        """What the best constant answer gets to questions that several texts are asked.

        Among the references, and all their words together; a question that one text alone is asked
        is taken to give nothing away.
        """
        # As in the table, each unit counts once.
        sizes = Counter(item.unit for item in items)
        total = 0.0
        for question in {item.question for item in items}:
            same = [item for item in items if item.question == question]
            references = {answer for item in same for answer in item.answers}
            guesses = [*references, " ".join(sorted(references))]
            if len(same) > 1:
                total += max(
                    sum(token_f1(guess, item.answers) / sizes[item.unit] for item in same)
                    for guess in guesses
                )
        return total / len(sizes)
