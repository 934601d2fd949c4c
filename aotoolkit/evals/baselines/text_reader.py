"""A reader that gets the tokens at the positions read instead of their activations.

What it answers needs no activations: an oracle that does no better may be inverting text.
"""

from collections.abc import Sequence
from typing import Any

from aotoolkit.errors import EvalError
from aotoolkit.evals.baselines.prompted import PromptedBaseline
from aotoolkit.evals.baselines.replies import Row, special_ids
from aotoolkit.evals.items import EvalItem
from aotoolkit.tracing import TracedModel


class TextReader(PromptedBaseline):
    """The base is shown the text that was read and asked the item's question."""

    def __init__(
        self,
        model: TracedModel,
        *,
        adapter: str | None = None,
        template: str = "{text}\n{question}",
        name: str = "text-only reader",
        **options: Any,
    ) -> None:
        """A text-only reader.

        Args:
            model: The reader: the target's base by default, or any other model.
            adapter: An adapter of it, such as one trained to read text.
            template: The user's turn, with `{text}` and `{question}`.
            name: As it stands in tables.
            **options: Of `PromptedBaseline`.

        Raises:
            EvalError: The template lacks one of the two.
        """
        super().__init__(model, name=name, **options)
        if any(template.count(part) != 1 for part in ("{text}", "{question}")):
            raise EvalError(
                f"template is {template!r}; it must hold '{{text}}' and '{{question}}' once each."
            )
        self.adapter = adapter
        self.template = template

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""
        special = special_ids(self.model.tokenizer)
        rows = []
        for item in items:
            # Control tokens would forge turns.
            acts = item.activations
            text = "".join(
                token
                for token, token_id in zip(acts.tokens, acts.token_ids, strict=True)
                if token_id not in special
            ).strip()
            before, _, after = self.template.partition("{text}")
            content = (
                before.replace("{question}", item.question)
                + text
                + after.replace("{question}", item.question)
            )
            chat = [{"role": "user", "content": content}]
            rows.append(self._reply_row(chat, self.adapter, self.start))
        return rows
