"""What all baselines that write one prompt for each item have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from aotoolkit.evals.arms import Kind
from aotoolkit.evals.baselines.replies import (
    Row,
    encode_rendered,
    generate_replies,
    reply_log_probs,
    reply_prompt,
)
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Message


class PromptedBaseline(ABC):
    """Writes a prompt, lets a model reply to it, and scores the choices as its reply.

    A subclass writes `rows`. A choice is scored as the whole reply, unless `start` has begun it:
    then as what comes next, and nothing need end after it, only no other choice go on from it.
    """

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        *,
        name: str,
        start: str = "",
        max_new_tokens: int = 32,
        batch_size: int = 32,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """What all of them take.

        Args:
            model: The model, with its adapters.
            name: As it stands in tables.
            start: How the reply begins.
            max_new_tokens: Longest reply.
            batch_size: Prompts in one batch.
            chat_template_kwargs: For the chat template, such as `{"enable_thinking": False}`;
                default: the model's.
        """
        self.model = model
        self.name = name
        self.start = start
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        given = model.chat_template_kwargs if chat_template_kwargs is None else chat_template_kwargs
        self.chat_template_kwargs = dict(given)

    @abstractmethod
    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        rows = self.rows(items)
        texts = generate_replies(
            self.model,
            rows,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            description=self.name,
        )
        scores = reply_log_probs(
            self.model,
            rows,
            [[self._scored(item, choice) for choice in item.choices] for item in items],
            ended=not self.start,
            batch_size=self.batch_size,
            description=f"{self.name}: choices",
        )
        return [
            ArmAnswer(
                item=item.id,
                arm=self.name,
                text=text,
                scores=dict(zip(item.choices, own, strict=True)),
            )
            for item, text, own in zip(items, texts, scores, strict=True)
        ]

    def _scored(self, item: EvalItem, choice: str) -> str:
        if not self.start:
            return item.said(choice)
        return choice if self.start[-1].isspace() else f" {choice}"

    def _reply_row(self, chat: Sequence[Message], adapter: str | None, start: str) -> Row:
        text = reply_prompt(self.model, chat, **self.chat_template_kwargs) + start
        return Row(token_ids=encode_rendered(self.model, text)[0], adapter=adapter)
