"""Hidden system prompt: a persona or a rule in a system turn whose tokens are not read.

Only later turns are read, so an answer must come from what the model made of the system turn. The
same turns without the system turn are the control `base`: what guessing from them gives.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aotoolkit.data.context import encode_context, turn_start
from aotoolkit.errors import EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec
from aotoolkit.evals.metrics import fold, token_f1
from aotoolkit.evals.tasks.base import (
    PromptTask,
    Turns,
    as_turns,
    chosen,
    common_suffix,
    uniform_guess,
)
from aotoolkit.tracing import TracedModel

# Which prompts are candidates together: any, those of one category, or those of different ones.
Distance = Literal["any", "near", "far"]


@dataclass(frozen=True, kw_only=True)
class HiddenPrompt:
    """A system turn, what comes after it, and what is to be found.

    Attributes:
        label: The behaviour's name; several of one label are one unit.
        system: The system turn.
        turns: What follows: the user's turn, or a chat.
        question: What is asked; empty for the task's.
        answer: The persona or rule, as an answer to it.
        category: What is alike in it and others: prompts of one category are near each other.
    """

    label: str
    system: str
    turns: Turns
    answer: str
    question: str = ""
    category: str = ""


@dataclass(kw_only=True, eq=False)
class HiddenSystemPrompt(PromptTask):
    """Chooses what the system turn says, among what several say.

    Prompts are dealt into groups of as many as there are candidates. All of a group are asked the
    same question with the same candidates, each of which is right for one of them: a guesser that
    does not read is right in one of `candidates`, exactly.

    Attributes:
        prompts: The hidden prompts; or else
        groups: The same, dealt already; `dealt` are these, or those that `prompts` are dealt into.
        question: What is asked where a prompt has no question of its own; in a group the first
            prompt's is asked of all.
        direct_question: What the target itself is asked; empty for the same.
        candidates: How many there are to choose from. Prompts that fill no group are left out.
        adapter: The adapter of the target; default: the base.
        seed: Of the groups.
        secret_keeping: Whether the target is told to keep the prompt to itself.
    """

    prompts: Sequence[HiddenPrompt] = ()
    groups: Sequence[Sequence[HiddenPrompt]] = ()
    question: str = "What type of persona will the assistant adopt?"
    direct_question: str = ""
    candidates: int = 4
    adapter: str | None = None
    seed: int = 0
    secret_keeping: bool = False
    name: str = "hidden_prompt"
    unit = "hidden prompt"
    metric = "chooses the prompt"
    secondary = ("nearest by words",)

    def __post_init__(self) -> None:
        if bool(self.prompts) and bool(self.groups):
            raise EvalError(f"The task {self.name!r} has prompts and groups; give one of the two.")
        # Not put in place of `groups`, so that `dataclasses.replace` has what was given.
        size = max(self.candidates, 1)
        self.dealt = self.groups or deal(self.prompts, size=size, seed=self.seed)
        for group in self.dealt:
            if len({fold(prompt.answer) for prompt in group}) < max(2, len(group)):
                raise EvalError(
                    f"A group has the answers {[prompt.answer for prompt in group]}; give two or "
                    "more different."
                )
        if self.candidates < 2 or not self.dealt:
            raise EvalError(
                f"candidates is {self.candidates}, and there are {len(self.prompts)} prompts; give "
                "2 or more candidates, and prompts of as many labels with different answers."
            )
        if self.positions is not None:
            raise EvalError(
                f"positions is {self.positions}; the task {self.name!r} reads all that follows the "
                "system turn. Leave positions out."
            )

    def specs(self) -> list[ItemSpec]:
        """See `PromptTask`."""
        specs = []
        for group_number, group in enumerate(self.dealt):
            choices = tuple(prompt.answer for prompt in group)
            question = group[0].question or self.question
            for number, prompt in enumerate(group):
                later = as_turns(prompt.turns)
                whole = ({"role": "system", "content": prompt.system}, *later)
                specs.append(
                    ItemSpec(
                        id=f"{group_number}/{number}/{prompt.label}",
                        task=self.name,
                        unit=prompt.label,
                        question=question,
                        direct_question=self.direct_question,
                        answers=(prompt.answer,),
                        choices=choices,
                        reply=self.said,
                        prompt=whole,
                        base_prompt=later,
                        adapter=self.adapter,
                    )
                )
        return specs

    def placed(self, model: TracedModel, specs: list[ItemSpec]) -> list[ItemSpec]:
        """Reads what follows the system turn, as far as its tokens are the same without it.

        Raises:
            EvalError: Nothing is the same.
            DataError: The chat template writes the system turn where it cannot be told apart.
        """
        placed = []
        for spec in specs:
            assert spec.chat is not None, "a hidden prompt is a chat"
            options = {"add_generation_prompt": spec.chat[-1]["role"] == "user"}
            context = encode_context(model.tokenizer, spec.chat, **options)
            start = context.first_from(turn_start(model.tokenizer, spec.chat, 1, **options))
            later = context.token_ids[start:]
            # Where the template writes both in one turn, a token may lie across the seam.
            bare = encode_context(model.tokenizer, spec.chat[1:], **options).token_ids
            count = common_suffix([later, bare])
            if count == 0:
                raise EvalError(
                    f"Item {spec.id!r} of the task {self.name!r}: without the system turn the "
                    f"chat template of {model.name} writes the later turns in other tokens, so "
                    "that there is no base to compare with."
                )
            placed.append(replace(spec, positions=slice(-count, None)))
        return placed

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether the prompt is chosen; without scores, whether the text is nearest to it."""
        if answer.scores:
            return float(chosen(item, answer) in item.answers)
        return self.secondary_score(self.secondary[0], item, answer)

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """Whether no other candidate has as high a token F1 with the answer."""
        assert name in self.secondary, name
        shared = {choice: token_f1(answer.text, choice) for choice in item.choices}
        others = max(value for choice, value in shared.items() if choice not in item.answers)
        return float(shared[item.answers[0]] > others)

    def chance(self, items: Sequence[EvalItem]) -> float:
        """One in the number of candidates."""
        return uniform_guess(items)


def deal(
    prompts: Sequence[HiddenPrompt], *, size: int, seed: int, distance: Distance = "any"
) -> list[list[HiddenPrompt]]:
    """Groups of prompts of different labels and answers; what fills no group is left out.

    Args:
        prompts: The prompts; those with a question in common come together.
        size: Prompts in a group.
        seed: Of the order.
        distance: `near` deals prompts of one category together, `far` those of different ones.
    """
    if distance == "near":
        alike: dict[str, list[HiddenPrompt]] = defaultdict(list)
        for prompt in prompts:
            alike[prompt.category].append(prompt)
        near = [group for own in alike.values() for group in deal(own, size=size, seed=seed)]
        random.Random(seed).shuffle(near)
        return near
    asked = Counter(prompt.question for prompt in prompts)
    waiting = list(prompts)
    random.Random(seed).shuffle(waiting)
    waiting.sort(key=lambda prompt: (-asked[prompt.question], prompt.question))
    groups = []
    while True:
        group: list[HiddenPrompt] = []
        for prompt in waiting:
            if all(_may_meet(prompt, other, distance) for other in group):
                group.append(prompt)
            if len(group) == size:
                break
        else:
            return groups
        groups.append(group)
        taken = {id(prompt) for prompt in group}
        waiting = [prompt for prompt in waiting if id(prompt) not in taken]


def _may_meet(one: HiddenPrompt, other: HiddenPrompt, distance: Distance) -> bool:
    return (
        fold(one.answer) != fold(other.answer)
        and one.label != other.label
        and (distance != "far" or one.category != other.category)
    )
