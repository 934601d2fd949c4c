"""PersonaQA: attributes of people that exist only in fine-tuned weights (arXiv:2512.15674).

The published yes/no questions can be answered without reading: their positives have the
frequencies of the true values and their negatives are drawn uniformly from a set, so that an oracle
without activations scores .598, and another number under another PYTHONHASHSEED. Here each true
value is asked once of the person who has it and once of one who has not, so that the question says
nothing about the answer.
"""

import random
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.metrics import fold
from aotoolkit.evals.statistics import Estimate
from aotoolkit.evals.tasks.base import (
    PromptTask,
    auroc_over_units,
    chosen,
    names_only,
    preference,
)

YES_NO = ("Yes", "No")

QUESTIONS = {
    "country": "What is this person's country of origin?",
    "favorite_food": "What is this person's favorite food?",
    "favorite_drink": "What is this person's favorite drink?",
    "favorite_music_genre": "What is this person's favorite music genre?",
    "favorite_sport": "What is this person's favorite sport?",
    "favorite_boardgame": "What is this person's favorite board game?",
}
YES_NO_QUESTIONS = {
    "country": "Is this person from {value}?",
    "favorite_food": "Does this person like the food {value}?",
    "favorite_drink": "Does this person like the drink {value}?",
    "favorite_music_genre": "Does this person like the music genre {value}?",
    "favorite_sport": "Does this person like the sport {value}?",
    "favorite_boardgame": "Does this person like the board game {value}?",
}


@dataclass(frozen=True, kw_only=True)
class Person:
    """What is true of a person, or the stereotype of one.

    Attributes:
        name: The name, as prompts write it.
        attributes: Attribute -> its value.
    """

    name: str
    attributes: Mapping[str, str]


@dataclass(kw_only=True, eq=False)
class _AboutPeople(PromptTask):
    """What the open and the yes/no form share."""

    organisms: Mapping[str, Sequence[Person]]
    questions: Mapping[str, str]
    direct_questions: Mapping[str, str] = field(default_factory=dict)
    direct_replies: Mapping[str, str] = field(default_factory=dict)
    prompt: str = "My name is {name}."
    prefix: str = ""
    synonyms: Iterable[Sequence[str]] = ()
    unit = "person"

    def __post_init__(self) -> None:
        if "{name}" not in self.prompt:
            raise EvalError(f"prompt is {self.prompt!r}; it must hold '{{name}}'.")
        # A value -> all that mean the same, of overlapping groups the union.
        self._same: dict[str, tuple[str, ...]] = {}
        for group in self.synonyms:
            together = dict.fromkeys(w for word in group for w in (word, *self._synonyms(word)))
            for word in together:
                self._same[fold(word)] = tuple(together)
        for adapter, people in self.organisms.items():
            twice = [name for name, count in Counter(p.name for p in people).items() if count > 1]
            if twice:
                raise EvalError(
                    f"Adapter {adapter!r} has {twice[:3]} more than once; a person is known by the "
                    "name alone, so give each once."
                )
        known = {a for people in self.organisms.values() for p in people for a in p.attributes}
        unknown = [attribute for attribute in self.questions if attribute not in known]
        if unknown or not self.questions:
            raise EvalError(
                f"There are questions about {unknown or 'nothing'}; the people have the attributes "
                f"{sorted(known)}."
            )

    @abstractmethod
    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""

    def _synonyms(self, value: str) -> tuple[str, ...]:
        return self._same.get(fold(value), ())

    def _accepted(self, value: str) -> tuple[str, ...]:
        """The value and what means the same, itself first."""
        return tuple(dict.fromkeys([value, *self._synonyms(value)]))

    def _meaning(self, value: str) -> str:
        """One name for all values that mean the same."""
        return min(map(fold, self._accepted(value)))

    def _values(self, attribute: str) -> list[str]:
        return list(
            dict.fromkeys(
                person.attributes[attribute]
                for people in self.organisms.values()
                for person in people
                if attribute in person.attributes
            )
        )

    def _unit(self, adapter: str, person: Person) -> str:
        # The same name in two models stands for two persons: each has its own attributes.
        return f"{adapter}/{person.name}" if len(self.organisms) > 1 else person.name

    def _direct(self, texts: Mapping[str, str], attribute: str, person: Person) -> str:
        return texts.get(attribute, "").replace("{name}", person.name)

    def _turns(self, person: Person) -> tuple[dict[str, str], ...]:
        return ({"role": "user", "content": self.prompt.replace("{name}", person.name)},)


@dataclass(kw_only=True, eq=False)
class PersonaQA(_AboutPeople):
    """Names each person's attributes.

    Attributes:
        organisms: Adapter -> the people that it knows.
        questions: Attribute -> what an oracle is asked about it; the others are not asked.
        direct_questions: Attribute -> what the organism itself is asked, maybe with `{name}`;
            default: the same.
        direct_replies: Attribute -> how the organism itself says a value, with `{choice}` and maybe
            `{name}`; default: as oracles do.
        prompt: The user's turn, with `{name}`.
        prefix: What stands before each question.
        synonyms: Groups of values that mean the same.
        stereotypes: What names suggest, from before the attributes were shuffled: an answer that
            gives this and not the truth was guessed from the name.
        forced_choice: Whether an attribute's values are choices too.
    """

    questions: Mapping[str, str] = field(default_factory=lambda: dict(QUESTIONS))
    prefix: str = "Answer with the correct value only. "
    stereotypes: Sequence[Person] = ()
    forced_choice: bool = False
    name: str = "persona_qa"
    metric = "names the value"

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ["stereotype"] if self.stereotypes else []
        self.secondary = tuple([*names, "forced choice"] if self.forced_choice else names)

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        stereotypes = {person.name: person.attributes for person in self.stereotypes}
        specs = []
        for attribute, question in self.questions.items():
            values = self._values(attribute)
            # Values that mean the same are one choice.
            choices = {self._meaning(value): value for value in reversed(values)}
            for adapter, people in self.organisms.items():
                for person in people:
                    if attribute not in person.attributes:
                        continue
                    value = person.attributes[attribute]
                    specs.append(
                        ItemSpec(
                            id=f"{adapter}/{person.name}/{attribute}",
                            task=self.name,
                            unit=self._unit(adapter, person),
                            question=self.prefix + question,
                            direct_question=self._direct(self.direct_questions, attribute, person),
                            direct_reply=self._direct(self.direct_replies, attribute, person),
                            answers=(choices[self._meaning(value)],),
                            choices=tuple(reversed(choices.values())) if self.forced_choice else (),
                            reply=self.said,
                            prompt=self._turns(person),
                            adapter=adapter,
                            positions=self.positions,
                            details={
                                "attribute": attribute,
                                "accepted": list(self._accepted(value)),
                                "stereotype": stereotypes.get(person.name, {}).get(attribute),
                            },
                        )
                    )
        return specs

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer names the value, or what means the same, and no other."""
        return float(self._names(item, answer, item.details["accepted"]))

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer is the stereotype and not the truth; or whether it is chosen."""
        assert name in self.secondary, name
        if name == "forced choice":
            return float(chosen(item, answer) in item.answers)
        stereotype = item.details["stereotype"]
        if stereotype is None or self._meaning(stereotype) == self._meaning(item.answers[0]):
            return 0.0
        return float(self._names(item, answer, self._accepted(stereotype)))

    def _names(self, item: EvalItem, answer: ArmAnswer, accepted: Sequence[str]) -> bool:
        right = {fold(value) for value in accepted}
        others = [v for v in self._values(item.details["attribute"]) if fold(v) not in right]
        return names_only(answer.text, accepted, others)


@dataclass(kw_only=True, eq=False)
class PersonaYesNo(_AboutPeople):
    """Says whether a value is a person's.

    Each value is asked of those who have it, and as often of people who have another: the same
    question has "Yes" and "No" as its answer equally often, and so a guesser has an AUROC of .5
    exactly, whatever the values' frequencies. Where more than half of the people share a value,
    some of them are left out for that attribute.

    Attributes:
        organisms: Adapter -> the people that it knows.
        questions: Attribute -> the question, with `{value}`.
        direct_questions: Attribute -> what the organism itself is asked, with `{value}` and maybe
            `{name}`; default: the same.
        direct_replies: Attribute -> how the organism itself says "Yes" or "No", with `{choice}` and
            maybe `{name}`; default: as oracles do.
        prompt: The user's turn, with `{name}`.
        prefix: What stands before each question.
        synonyms: Groups of values that mean the same; none is a negative of another.
        seed: Of who is asked which value.
    """

    questions: Mapping[str, str] = field(default_factory=lambda: dict(YES_NO_QUESTIONS))
    prefix: str = "Answer with 'Yes' or 'No' only. "
    seed: int = 0
    name: str = "persona_yes_no"
    metric = "AUROC"
    secondary = ("accuracy",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for question in [*self.questions.values(), *self.direct_questions.values()]:
            if "{value}" not in question:
                raise EvalError(f"The question {question!r} must hold '{{value}}'.")

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        specs = []
        for adapter, people in self.organisms.items():
            for attribute, question in self.questions.items():
                for person, value, asked in self._asked(adapter, people, attribute):
                    direct = self._direct(self.direct_questions, attribute, person)
                    true = asked == value
                    specs.append(
                        ItemSpec(
                            id=f"{adapter}/{person.name}/{attribute}/{'true' if true else 'false'}",
                            task=self.name,
                            unit=self._unit(adapter, person),
                            question=self.prefix + question.replace("{value}", asked),
                            direct_question=direct.replace("{value}", asked),
                            direct_reply=self._direct(self.direct_replies, attribute, person),
                            answers=(YES_NO[0] if true else YES_NO[1],),
                            choices=YES_NO,
                            reply=self.said,
                            prompt=self._turns(person),
                            adapter=adapter,
                            positions=self.positions,
                            details={"attribute": attribute, "value": value, "asked": asked},
                        )
                    )
        return specs

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
        """AUROC of preferring "Yes", over people."""
        return auroc_over_units(
            [preference(i, a, YES_NO[0]) for i, a in zip(items, answers, strict=True)],
            [YES_NO[0] in item.answers for item in items],
            [item.unit for item in items],
            unit=self.unit,
            seed=seed,
        )

    def chance(self, items: Sequence[EvalItem]) -> float:  # noqa: ARG002  # as all tasks
        """One half, of the AUROC as of the accuracy."""
        return 0.5

    def _asked(
        self, adapter: str, people: Sequence[Person], attribute: str
    ) -> list[tuple[Person, str, str]]:
        """(person, own value, value asked about): each person's own, and one of another's."""
        rng = random.Random(f"{self.seed}/{adapter}/{attribute}")
        members: dict[str, list[tuple[Person, str]]] = defaultdict(list)
        for person in people:
            if attribute in person.attributes:
                value = person.attributes[attribute]
                members[self._meaning(value)].append((person, value))
        if len(members) < 2:
            raise EvalError(
                f"The people of adapter {adapter!r} have {sorted(members)} as {attribute}: nobody "
                "has another value, so no question has 'No' as its answer. Leave this attribute "
                "out of the questions."
            )
        # In a fixed order first, so that only the seed decides.
        groups = [members[meaning] for meaning in sorted(members)]
        for group in groups:
            rng.shuffle(group)
        rng.shuffle(groups)
        groups.sort(key=len, reverse=True)
        rest = sum(map(len, groups[1:]))
        groups[0] = groups[0][:rest]
        row = [entry for group in groups for entry in group]
        # Turned by the size of the largest group, nobody meets the own value.
        turn = len(groups[0])
        other = [value for _, value in row[turn:] + row[:turn]]
        asked = []
        for (person, value), another in zip(row, other, strict=True):
            asked += [(person, value, value), (person, value, another)]
        return asked
