"""Relation extraction: the object of a relation, from what the model holds at its subject.

The texts are of the Patchscopes form (arXiv:2401.06102): snippets in which the subject is
mentioned and the object is not, cut off or going on after it.
"""

from dataclasses import dataclass, replace

from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.metrics import fold
from aotoolkit.evals.tasks.base import PromptTask, chosen, names_only
from aotoolkit.tracing import TracedModel


@dataclass(frozen=True, kw_only=True)
class Mention:
    """A text that mentions a subject.

    Attributes:
        subject: The subject.
        object: What the relation gives for it.
        text: The text; its last mention of the subject is read.
    """

    subject: str
    object: str
    text: str

    def __post_init__(self) -> None:
        if not (self.subject and self.object) or self.subject not in self.text:
            raise EvalError(
                f"The text {self.text!r} does not mention the subject {self.subject!r}, or it or "
                f"the object {self.object!r} is empty."
            )


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation and texts that mention its subjects.

    Attributes:
        name: Its name.
        mentions: The texts.
        left_out: Rows of a file whose text does not mention the subject.
    """

    name: str
    mentions: tuple[Mention, ...]
    left_out: int = 0


@dataclass(kw_only=True, eq=False)
class RelationExtraction(PromptTask):
    """Names the object, from the last token of the subject.

    The unit is the subject: several texts mention it.

    Attributes:
        relation: The relation.
        question: What is asked about the subject, without naming it: "What is the currency of
            this country?".
        adapter: The adapter of the target; default: the base.
        forced_choice: Whether the objects are choices too.
    """

    relation: Relation
    question: str
    adapter: str | None = None
    forced_choice: bool = False
    name: str = "relation"
    unit = "subject"
    metric = "names the object"

    def __post_init__(self) -> None:
        if self.positions is not None or self.reply:
            raise EvalError(
                f"The task {self.name!r} reads the subject's last token and nothing else; leave "
                "positions and reply out."
            )
        self.secondary = ("forced choice",) if self.forced_choice else ()
        self._objects: dict[str, str] = {}
        for mention in self.relation.mentions:
            self._objects.setdefault(fold(mention.object), mention.object)

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        return [
            ItemSpec(
                id=f"{self.relation.name}/{number}",
                task=self.name,
                unit=mention.subject,
                question=self.question,
                answers=(self._objects[fold(mention.object)],),
                choices=tuple(self._objects.values()) if self.forced_choice else (),
                reply=self.said,
                prompt=mention.text,
                adapter=self.adapter,
            )
            for number, mention in enumerate(self.relation.mentions)
        ]

    def placed(self, model: TracedModel, specs: list[ItemSpec]) -> list[ItemSpec]:
        """Reads the last token of the subject's last mention.

        Raises:
            EvalError: The tokenizer gives no token for it.
        """
        return [
            replace(spec, positions=(_last_token(model, mention),))
            for spec, mention in zip(specs, self.relation.mentions, strict=True)
        ]

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer names the object and no other subject's."""
        others = [value for value in self._objects.values() if value not in item.answers]
        return float(names_only(answer.text, item.answers, others))

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the object is chosen among all."""
        assert name in self.secondary, name
        return float(chosen(item, answer) in item.answers)


def _last_token(model: TracedModel, mention: Mention) -> int:
    encoded = model.encode(mention.text)
    last = mention.text.rindex(mention.subject) + len(mention.subject) - 1
    for index, (start, end) in enumerate(encoded.offsets):
        if start <= last < end:
            return index
    raise EvalError(
        f"The tokenizer of {model.name} gives no token for the end of {mention.subject!r} in "
        f"{mention.text!r}; it may change the text. Use the fast tokenizer of the model."
    )
