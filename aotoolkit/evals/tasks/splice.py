"""State, not tokens: the same tokens are read, and what came before them is another.

Whoever gives one answer to both halves of a pair has read the tokens, or guessed; whoever gives
each half its own has read the state. In the published check 53 of 54 answers were the same for
both halves.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from aotoolkit.data.context import encode_context
from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.metrics import fold
from aotoolkit.evals.statistics import Estimate, bootstrap_mean
from aotoolkit.evals.tasks.base import (
    PromptTask,
    Turns,
    chosen,
    common_suffix,
    names_only,
)
from aotoolkit.oracle.controls import normalise
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Prompt

SLOT = "{edit}"


@dataclass(frozen=True, kw_only=True)
class SpliceGroup:
    """Prompts that end alike and begin otherwise, with the answer that each makes right.

    Attributes:
        name: Its name.
        prompts: Answer -> prompt: a chat, or a text that is read as it is.
        question: What is asked of each half.
    """

    name: str
    prompts: Mapping[str, Turns]
    question: str

    def __post_init__(self) -> None:
        if len({fold(answer) for answer in self.prompts}) < max(2, len(self.prompts)):
            raise EvalError(
                f"The group {self.name!r} has the answers {list(self.prompts)}; give two or more "
                "halves with different answers."
            )

    @classmethod
    def edited(cls, *, name: str, prompt: Turns, edits: Mapping[str, str], question: str) -> Self:
        """A group that an upstream edit makes.

        Args:
            name: Its name.
            prompt: A text, or a chat, with `{edit}` once.
            edits: Answer -> what stands there.
            question: What is asked of each half.

        Raises:
            EvalError: The prompt has no such place, or several.
        """
        texts = [prompt] if isinstance(prompt, str) else [str(turn["content"]) for turn in prompt]
        if sum(text.count(SLOT) for text in texts) != 1:
            raise EvalError(f"The prompt of the group {name!r} must hold {SLOT!r} once.")
        made = {answer: _filled(prompt, edit) for answer, edit in edits.items()}
        return cls(name=name, prompts=made, question=question)


def _filled(prompt: Turns, edit: str) -> Turns:
    if isinstance(prompt, str):
        return prompt.replace(SLOT, edit)
    return [{**turn, "content": str(turn["content"]).replace(SLOT, edit)} for turn in prompt]


@dataclass(kw_only=True, eq=False)
class StateNotTokens(PromptTask):
    """Gives each half of a group its own answer.

    A half counts whose answer is right, unless another half was answered alike. A constant answer
    and a reader of the tokens get 0; who draws one of m choices for each of two halves gets
    (m - 1) / m^2, a quarter of two.

    The control `base` is what the model makes of the read tokens alone, without anything before
    them.

    Attributes:
        groups: The groups.
        tokenizer: The target's, with which the groups are checked.
        positions: Positions that are read, negative from the end; default: all tokens that the
            halves of a group end with.
        choices: Whether the answers of a group are the choices of a forced choice.
        adapter: The adapter of the target; default: the base.

    Raises:
        EvalError: The read tokens of two halves of a group differ, or there are none.
    """

    groups: Sequence[SpliceGroup]
    tokenizer: PreTrainedTokenizerBase
    choices: bool = True
    adapter: str | None = None
    name: str = "state_not_tokens"
    unit = "group"
    metric = "follows the state"
    secondary = ("right",)

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if not names or len(set(names)) < len(names):
            raise EvalError(f"The groups are named {names[:10]}; give one or more, each name once.")
        if self.reply:
            raise EvalError(
                f"The task {self.name!r} reads the same tokens in both halves, and the target's "
                "replies would differ. Leave reply=False."
            )
        self._read = {group.name: self._positions(group) for group in self.groups}

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        return [
            ItemSpec(
                id=f"{group.name}/{answer}",
                task=self.name,
                unit=group.name,
                question=group.question,
                answers=(answer,),
                choices=tuple(group.prompts) if self.choices else (),
                reply=self.said,
                prompt=prompt if isinstance(prompt, str) else tuple(prompt),
                base_prompt=self._read[group.name][1],
                adapter=self.adapter,
                positions=self._read[group.name][0],
                details={"others": [other for other in group.prompts if other != answer]},
            )
            for group in self.groups
            for answer, prompt in group.prompts.items()
        ]

    def items(self, model: TracedModel) -> list[EvalItem]:
        """The items, read from `model`.

        Raises:
            EvalError: With this model's tokenizer the read tokens of two halves differ.
        """
        items = super().items(model)
        for name, group in _by_group(items).items():
            if len({item.activations.token_ids for item, _ in group}) > 1:
                raise EvalError(
                    f"The halves of the group {name!r} were read at different tokens: "
                    f"{[''.join(item.activations.tokens) for item, _ in group]}. Give the task the "
                    f"tokenizer of {model.name}."
                )
        return items

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer is right, whatever the other halves' are; `estimate` joins them."""
        if item.choices:
            return float(chosen(item, answer) in item.answers)
        return float(names_only(answer.text, item.answers, item.details["others"]))

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the answer is right: a constant one is, for one half of each group."""
        assert name in self.secondary, name
        return self.score(item, answer)

    def estimate(
        self, items: Sequence[EvalItem], answers: Sequence[ArmAnswer], *, seed: int = 0
    ) -> Estimate:
        """Share of halves whose answer is right and no other half's of the group."""
        return bootstrap_mean(
            [self._followed(group) for group in _by_group(items, answers).values()],
            unit=self.unit,
            seed=seed,
            bounds=(0.0, 1.0),
        )

    def chance(self, items: Sequence[EvalItem]) -> float:
        """What drawing a choice for each half gets; 0 for free answers."""
        halves = Counter(item.unit for item in items)
        of_groups = [
            (1 / len(group[0][0].choices))
            * (1 - 1 / len(group[0][0].choices)) ** (halves[name] - 1)
            if group[0][0].choices
            else 0.0
            for name, group in _by_group(items).items()
        ]
        return sum(of_groups) / len(of_groups)

    def _followed(self, group: Sequence[tuple[EvalItem, ArmAnswer | None]]) -> list[float]:
        answers = [(item, answer) for item, answer in group if answer is not None]
        said = [
            (chosen(item, answer) if item.choices else None) or normalise(answer.text)
            for item, answer in answers
        ]
        alike = Counter(said)
        return [
            self.score(item, answer) if alike[own] == 1 else 0.0
            for (item, answer), own in zip(answers, said, strict=True)
        ]

    def _positions(self, group: SpliceGroup) -> tuple[slice | tuple[int, ...], Prompt]:
        """The positions that are read, and the read tokens alone."""
        rows = [
            encode_context(
                self.tokenizer,
                prompt,
                add_generation_prompt=not isinstance(prompt, str)
                and prompt[-1].get("role") != "assistant",
            ).token_ids
            for prompt in group.prompts.values()
        ]
        shared = common_suffix(rows)
        if len(set(rows)) < len(rows):
            raise EvalError(f"Two halves of the group {group.name!r} are the same prompt.")
        read = slice(-shared, None) if self.positions is None else self.positions
        first = read.start if isinstance(read, slice) else min(read)
        if shared == 0 or first is None or first >= 0 or -first > shared:
            text = self.tokenizer.decode(list(rows[0][len(rows[0]) - shared :]))
            raise EvalError(
                f"positions is {self.positions}, and the halves of the group {group.name!r} end "
                f"with {shared} tokens in common: {text!r}. Read only these, with negative "
                "positions; or let the halves end with the same text."
            )
        return read, list(rows[0][-shared:])


def _by_group(
    items: Sequence[EvalItem], answers: Sequence[ArmAnswer] | None = None
) -> dict[str, list[tuple[EvalItem, ArmAnswer | None]]]:
    found: dict[str, list[tuple[EvalItem, ArmAnswer | None]]] = defaultdict(list)
    for item, answer in zip(items, answers or [None] * len(items), strict=True):
        found[item.unit].append((item, answer))
    return found
