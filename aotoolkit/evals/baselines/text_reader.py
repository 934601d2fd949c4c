"""A reader that gets the tokens at the positions read instead of their activations.

What it answers needs no activations: an oracle that does no better may be inverting text.
"""

from collections.abc import Sequence

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.baselines.replies import (
    Row,
    encode_rendered,
    generate_replies,
    reply_log_probs,
    reply_prompt,
    special_ids,
)
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.tracing import TracedModel


class TextReader:
    """The base is shown the text that was read and asked the item's question."""

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        *,
        adapter: str | None = None,
        template: str = "{text}\n{question}",
        name: str = "text-only reader",
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> None:
        """A text-only reader.

        Args:
            model: The reader: the target's base by default, or any other model.
            adapter: An adapter of it, such as one trained to read text.
            template: The user's turn, with `{text}` and `{question}`.
            name: As it stands in tables.
            max_new_tokens: Longest answer.
            batch_size: Prompts in one batch.

        Raises:
            EvalError: The template lacks one of the two.
        """
        if any(template.count(part) != 1 for part in ("{text}", "{question}")):
            raise EvalError(
                f"template is {template!r}; it must hold '{{text}}' and '{{question}}' once each."
            )
        self.model = model
        self.adapter = adapter
        self.template = template
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The prompt for each item."""
        rows = []
        special = special_ids(self.model.tokenizer)
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
            prompt = reply_prompt(self.model, [{"role": "user", "content": content}])
            ids, _ = encode_rendered(self.model, prompt)
            rows.append(Row(token_ids=ids, adapter=self.adapter))
        return rows

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`; a choice is scored as the whole reply."""
        rows = self.rows(items)
        texts = generate_replies(
            self.model,
            rows,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            description=self.name,
        )
        candidates = [[item.said(choice) for choice in item.choices] for item in items]
        scores = reply_log_probs(
            self.model, rows, candidates, ended=True, batch_size=self.batch_size
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
