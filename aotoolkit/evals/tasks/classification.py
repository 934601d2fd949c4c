"""Classification: yes/no questions about texts, on predicates that an oracle may not have seen."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.statistics import Estimate, bootstrap_mean
from aotoolkit.evals.tasks.base import (
    Positions,
    PromptTask,
    auroc_over_units,
    chosen,
    preference,
    shifted,
)
from aotoolkit.tracing import TracedModel

YES_NO = ("Yes", "No")


@dataclass(frozen=True, kw_only=True)
class Predicate:
    """Something that is true of some texts and not of others.

    Attributes:
        name: Its name.
        positives: Texts of which it is true.
        negatives: Texts of which it is not.
        questions: Wordings of the question, to which "Yes" is the answer for the positives.
    """

    name: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    questions: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (self.positives and self.negatives and self.questions):
            raise EvalError(
                f"The predicate {self.name!r} has {len(self.positives)} positives, "
                f"{len(self.negatives)} negatives and {len(self.questions)} questions; it needs "
                "one of each at least."
            )
        if both := set(self.positives) & set(self.negatives):
            raise EvalError(
                f"{sorted(both)[0]!r} stands among the positives and the negatives of "
                f"{self.name!r}; leave it out of one."
            )


@dataclass(kw_only=True, eq=False)
class PredicateClassification(PromptTask):
    """Says whether a predicate is true of a text.

    Of each predicate as many positives as negatives are taken, and both are asked the same
    questions, so that a guesser has an AUROC and an accuracy of .5 on every question.

    What n counts depends on what is claimed. "The oracle answers yes/no questions" is a claim about
    predicates: few were tried, however many texts each had, and `unit="predicate"` counts them
    (the AUROC is then the mean over predicates of the one within each). A claim about one
    predicate is about its texts: a task of that predicate alone with `unit="text"`. The wordings
    of a question never count.

    Attributes:
        predicates: The predicates.
        texts: Positives and as many negatives that are taken of each, drawn by `seed`.
        wordings: Wordings of the question put to each text, drawn by `seed`.
        prefix: What stands before each question.
        chat: Whether a text is read as the user's turn, or as it is.
        positions: Negative ones count from the end of the text's turn, before the header of a
            reply, as in training data; the published evaluation reads the third last token.
        unit: What n counts, "predicate" or "text".
        seed: Of the draws.
    """

    predicates: Sequence[Predicate]
    texts: int = 125
    wordings: int = 3
    prefix: str = "Answer with 'Yes' or 'No' only. "
    chat: bool = True
    positions: Positions = (-3,)
    adapter: str | None = None
    unit: str = "predicate"
    seed: int = 0
    name: str = "classification"
    metric = "AUROC"
    secondary = ("accuracy",)

    def __post_init__(self) -> None:
        names = [predicate.name for predicate in self.predicates]
        if not names or len(set(names)) < len(names):
            raise EvalError(f"The predicates are {names}; give one or more, each name once.")
        if self.unit not in ("predicate", "text"):
            raise EvalError(f"unit is {self.unit!r}; give 'predicate' or 'text'.")
        if self.unit == "text" and len(names) > 1:
            raise EvalError(
                f"unit='text' is about one predicate, and there are {len(names)}: {names}. Make a "
                "task of each, or count predicates."
            )
        if self.texts < 1 or self.wordings < 1:
            raise EvalError(
                f"texts is {self.texts} and wordings {self.wordings}; give 1 or more of each."
            )

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        return [
            ItemSpec(
                id=f"{predicate.name}/{number}/{'yes' if true else 'no'}/{wording}",
                task=self.name,
                unit=predicate.name if self.unit == "predicate" else text,
                question=self.prefix + question,
                answers=(YES_NO[0] if true else YES_NO[1],),
                choices=YES_NO,
                reply=self.said,
                prompt=({"role": "user", "content": text},) if self.chat else text,
                adapter=self.adapter,
                positions=self.positions,
                details={"predicate": predicate.name},
            )
            for predicate in self.predicates
            for number, (pair, questions) in enumerate(self._drawn(predicate))
            for text, true in zip(pair, (True, False), strict=True)
            for wording, question in enumerate(questions)
        ]

    def placed(self, model: TracedModel, specs: list[ItemSpec]) -> list[ItemSpec]:
        """Counts from the end of the text's turn; with a reply, from the end of that."""
        if not self.chat or self.reply:
            return specs
        turn = [{"role": "user", "content": "text"}]
        whole, bare = (
            len(model.encode(turn, add_generation_prompt=header)) for header in (True, False)
        )
        return [replace(spec, positions=shifted(spec.positions, whole - bare)) for spec in specs]

    def spare_specs(self, predicate: Predicate, limit: int) -> list[ItemSpec]:
        """Texts of a predicate that are not asked about, as they are read, to fit a probe on.

        Args:
            predicate: One of the task's.
            limit: At most so many positives, and so many negatives.
        """
        asked = {text for pair, _ in self._drawn(predicate) for text in pair}
        return [
            ItemSpec(
                id=f"{predicate.name}/spare/{answer}/{number}",
                task=self.name,
                unit=text,
                question="",
                answers=(answer,),
                prompt=({"role": "user", "content": text},) if self.chat else text,
                positions=self.positions,
            )
            for answer, side in zip(YES_NO, (predicate.positives, predicate.negatives), strict=True)
            for number, text in enumerate([text for text in side if text not in asked][:limit])
        ]

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer is the right one of the two."""
        return float(chosen(item, answer) in item.answers)

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """The same: its mean is the accuracy."""
        assert name in self.secondary, name
        return self.score(item, answer)

    def estimate(
        self, items: Sequence[EvalItem], answers: Sequence[ArmAnswer], *, seed: int = 0
    ) -> Estimate:
        """AUROC of preferring "Yes" within each predicate; see the class for what n counts."""
        by_predicate: dict[str, list[tuple[float, bool, str]]] = {}
        for item, answer in zip(items, answers, strict=True):
            entry = (
                preference(item, answer, YES_NO[0]),
                YES_NO[0] in item.answers,
                item.unit,
            )
            by_predicate.setdefault(item.details["predicate"], []).append(entry)
        each = {
            name: auroc_over_units(*zip(*entries, strict=True), unit=self.unit, seed=seed)
            for name, entries in by_predicate.items()
        }
        if self.unit == "text":
            return next(iter(each.values()))
        means = [[estimate.mean] for estimate in each.values()]
        if len(means) == 1:
            # One predicate says nothing about others.
            return Estimate(means[0][0], 0.0, 1.0, 1, self.unit)
        return bootstrap_mean(means, unit=self.unit, seed=seed, bounds=(0.0, 1.0))

    def chance(self, items: Sequence[EvalItem]) -> float:  # noqa: ARG002  # as all tasks
        """One half, of the AUROC as of the accuracy."""
        return 0.5

    def _drawn(self, predicate: Predicate) -> list[tuple[tuple[str, str], list[str]]]:
        """((positive, negative), the wordings that both are asked)."""
        rng = random.Random(f"{self.seed}/{predicate.name}")
        sides = [list(dict.fromkeys(side)) for side in (predicate.positives, predicate.negatives)]
        count = min(self.texts, *map(len, sides))
        pairs = zip(*(rng.sample(side, count) for side in sides), strict=True)
        wordings = list(dict.fromkeys(predicate.questions))
        asked = min(self.wordings, len(wordings))
        return [(pair, rng.sample(wordings, asked)) for pair in pairs]
