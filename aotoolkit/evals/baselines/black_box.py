"""What talking to the target gives: no activations, only prompts and what it says.

`Prompting`, `Prefill` and `UserTurn` (arXiv:2510.01070, whose user-persona sampling was the
strongest of all on two of its three tasks) each write a prompt; `Voted` draws many replies to the
same prompt at a high temperature and takes a vote.
"""

import collections
import re
from collections.abc import Sequence
from typing import Protocol

from tqdm.auto import tqdm

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.arms import Kind, item_seed
from aotoolkit.evals.baselines.replies import (
    Row,
    Sampling,
    encode_rendered,
    generate_replies,
    reply_log_probs,
    reply_prompt,
    user_turn_prompt,
)
from aotoolkit.evals.items import SECONDS_BEFORE_PROGRESS, ArmAnswer, EvalItem
from aotoolkit.oracle.controls import normalise
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Message


class PromptedArm(Protocol):
    """An arm that writes one prompt an item, so that many replies can be drawn to it."""

    name: str
    model: TracedModel
    max_new_tokens: int

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""
        ...


def asked_chat(item: EvalItem) -> list[Message]:
    """The target's chat with the question as the user's last turn.

    Where the chat ends with the user's turn, the question goes on in it: two user's turns in a row
    are not what any chat model knows.

    Raises:
        ArmNotApplicableError: The prompt is no chat.
    """
    if item.chat is None:
        raise ArmNotApplicableError(
            f"The prompt of item {item.id!r} is no chat, in which the target could be asked. Give "
            "it as chat messages, or leave black-box baselines out."
        )
    *before, last = item.chat
    if last["role"] != "user":
        return [*item.chat, {"role": "user", "content": item.asked_directly}]
    return [*before, {"role": "user", "content": f"{last['content']}\n{item.asked_directly}"}]


class Prompting:
    """Asks the target itself."""

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        *,
        name: str = "prompting",
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> None:
        """Prompting.

        Args:
            model: The target, with its adapters.
            name: As it stands in tables.
            max_new_tokens: Longest reply.
            batch_size: Prompts in one batch.
        """
        self.model = model
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""
        return [
            _row(self.model, item, reply_prompt(self.model, asked_chat(item))) for item in items
        ]

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; a choice is scored as the whole reply."""
        candidates = [[item.said(choice) for choice in item.choices] for item in items]
        return _answers(self, items, candidates, ended=True, batch_size=self.batch_size)


class Prefill:
    """Asks the target itself, and begins its reply."""

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        *,
        start: str = "What I'm hiding is:",
        name: str = "prefill",
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> None:
        """A prefilled reply; `start` is how it begins, the rest is as for `Prompting`."""
        self.model = model
        self.start = start
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""
        return [
            _row(self.model, item, reply_prompt(self.model, asked_chat(item), self.start))
            for item in items
        ]

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; a choice is scored as what comes next."""
        return _answers(
            self,
            items,
            _next_words(items, self.start),
            ended=False,
            batch_size=self.batch_size,
        )


class UserTurn:
    """Lets the target write the user's next turn: it often gives the user what it keeps to itself.

    Where the chat ends with the user's turn the target first replies, greedily.
    """

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        *,
        start: str = "Could it be:",
        name: str = "user's turn",
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> None:
        """A user's turn; `start` is how it begins, the rest is as for `Prompting`."""
        self.model = model
        self.start = start
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""
        chats: list[list[Message]] = []
        for item in items:
            if item.chat is None:
                raise ArmNotApplicableError(
                    f"The prompt of item {item.id!r} is no chat, so it has no user. Give it as "
                    f"chat messages, or leave {self.name!r} out."
                )
            chats.append(list(item.chat))
        open_ended = [i for i, chat in enumerate(chats) if chat[-1]["role"] == "user"]
        replies = generate_replies(
            self.model,
            [_row(self.model, items[i], reply_prompt(self.model, chats[i])) for i in open_ended],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            description=f"{self.name}: replies",
        )
        for i, reply in zip(open_ended, replies, strict=True):
            chats[i].append({"role": "assistant", "content": reply})
        return [
            _row(self.model, item, user_turn_prompt(self.model, chat, self.start))
            for item, chat in zip(items, chats, strict=True)
        ]

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; a choice is scored as what comes next."""
        return _answers(
            self,
            items,
            _next_words(items, self.start),
            ended=False,
            batch_size=self.batch_size,
        )


class Voted:
    """Many replies to one prompt at a high temperature, and what most of them say.

    A choice gets a vote from each reply that names it and no other; a free answer is the commonest
    reply, case and punctuation aside.
    """

    kind: Kind = "baseline"

    def __init__(
        self,
        arm: PromptedArm,
        *,
        samples: int = 20,
        temperature: float = 1.3,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        """A vote.

        Args:
            arm: Whose prompts are used.
            samples: Replies an item, drawn in one batch.
            temperature: Above 0.
            seed: Each item has its own from it, so that its replies do not depend on the others'.
            name: As it stands in tables; default: the arm's, with the temperature.

        Raises:
            EvalError: `samples` is below 1 or the temperature not above 0.
        """
        if samples < 1 or temperature <= 0:
            raise EvalError(
                f"samples is {samples} and temperature {temperature}; give at least one sample and "
                "a temperature above 0."
            )
        self.arm = arm
        self.samples = samples
        self.temperature = temperature
        self.seed = seed
        self.name = name or f"{arm.name}, {samples} samples at T={temperature:g}"

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; a choice's score is its share of the votes."""
        answers = []
        rows = self.arm.rows(items)
        bar = tqdm(items, desc=self.name, delay=SECONDS_BEFORE_PROGRESS, leave=False)
        for item, row in zip(bar, rows, strict=True):
            replies = generate_replies(
                self.arm.model,
                [row] * self.samples,
                max_new_tokens=self.arm.max_new_tokens,
                batch_size=self.samples,
                sampling=Sampling(self.temperature, item_seed(self.seed, item)),
            )
            answers.append(vote(replies, item, arm=self.name))
        return answers


def vote(replies: Sequence[str], item: EvalItem, *, arm: str) -> ArmAnswer:
    """What most replies say; see `Voted`."""
    details = {"samples": list(replies)}
    if item.choices:
        named = [names_one(reply, item.choices) for reply in replies]
        scores = {choice: named.count(choice) / len(replies) for choice in item.choices}
        best = max(scores, key=lambda choice: scores[choice])
        text = best if scores[best] else ""
        return ArmAnswer(item=item.id, arm=arm, text=text, scores=scores, details=details)
    said = collections.Counter(normalise(reply) for reply in replies)
    commonest, count = said.most_common(1)[0]
    text = next(reply for reply in replies if normalise(reply) == commonest)
    return ArmAnswer(
        item=item.id, arm=arm, text=text, details=details | {"share": count / len(replies)}
    )


def names_one(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text names as a whole word, where it is exactly one."""
    named = [
        choice
        for choice in choices
        if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text, re.IGNORECASE)
    ]
    return named[0] if len(named) == 1 else None


def _row(model: TracedModel, item: EvalItem, text: str) -> Row:
    return Row(token_ids=encode_rendered(model, text)[0], adapter=item.adapter)


def _next_words(items: Sequence[EvalItem], start: str) -> list[list[str]]:
    space = "" if not start or start[-1].isspace() else " "
    return [[space + choice for choice in item.choices] for item in items]


def _answers(
    arm: PromptedArm,
    items: Sequence[EvalItem],
    candidates: list[list[str]],
    *,
    ended: bool,
    batch_size: int,
) -> list[ArmAnswer]:
    rows = arm.rows(items)
    texts = generate_replies(
        arm.model,
        rows,
        max_new_tokens=arm.max_new_tokens,
        batch_size=batch_size,
        description=arm.name,
    )
    scores = reply_log_probs(arm.model, rows, candidates, ended=ended, batch_size=batch_size)
    return [
        ArmAnswer(
            item=item.id, arm=arm.name, text=text, scores=dict(zip(item.choices, own, strict=True))
        )
        for item, text, own in zip(items, texts, scores, strict=True)
    ]
