"""A reader that gets the tokens at the positions read instead of their activations.

What it answers needs no activations: an oracle that does no better may be inverting text.
"""

from collections.abc import Sequence
from typing import Any

from aotoolkit.errors import EvalError
from aotoolkit.evals.baselines.prompted import PromptedBaseline
from aotoolkit.evals.baselines.replies import Row, special_ids
from aotoolkit.evals.items import EvalItem
from aotoolkit.tracing import Activations, TracedModel


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
        tokenizer = self.model.tokenizer
        special = set(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))))
        rows = []
        for item in items:
            text = _text_read(item.activations, left_out=special).strip()
            before, _, after = self.template.partition("{text}")
            content = (
                before.replace("{question}", item.question)
                + text
                + after.replace("{question}", item.question)
            )
            chat = [{"role": "user", "content": content}]
            rows.append(self._reply_row(chat, self.adapter, self.start))
        return rows


def _text_read(acts: Activations, *, left_out: set[str]) -> str:
    """The prompt's own text at the positions read, without control tokens: they would forge turns.

    A token decoded alone may be part of a character, or have lost the space before it. So the text
    is cut where a run of neighbouring tokens begins and ends, and not between them.
    """
    runs: list[list[int]] = []
    for place, token in enumerate(acts.tokens):
        if token in left_out:
            continue
        if (
            runs
            and runs[-1][-1] == place - 1
            and acts.positions[place] == (acts.positions[place - 1] + 1)
        ):
            runs[-1].append(place)
        else:
            runs.append([place])
    return "".join(acts.text[acts.offsets[run[0]][0] : acts.offsets[run[-1]][1]] for run in runs)
