"""Vectors written into a prompt of the untrained base: SelfIE and Patchscopes.

SelfIE (arXiv:2403.10949) writes them over the placeholders of a request to repeat or to explain a
message; Patchscopes (arXiv:2401.06102) over the last word of a few-shot prompt. Both replace, and
both train nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aotoolkit.errors import EvalError, LayerError, PlaceholderError
from aotoolkit.evals.baselines.prompted import PromptedBaseline
from aotoolkit.evals.baselines.replies import Row, encode_rendered, reply_prompt
from aotoolkit.evals.items import EvalItem
from aotoolkit.tracing import TracedModel


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """The prompt that carries the vectors.

    Attributes:
        text: With `{vectors}` once, and `{question}` where the item's question goes.
        placeholder: What stands in the prompt for each vector; one token.
        reply: How the reply begins; a choice is then scored as what comes next.
        chat: Whether the text is a user's turn in the model's chat template, or plain text that
            the model continues.
    """

    text: str
    placeholder: str = " ?"
    reply: str = ""
    chat: bool = True

    def __post_init__(self) -> None:
        if self.text.count("{vectors}") != 1:
            raise EvalError(f"A carrier's text holds '{{vectors}}' once; this is {self.text!r}.")
        if not self.placeholder:
            raise EvalError("A carrier's placeholder is empty; give one that is one token.")
        if not self.chat and not self.reply:
            raise EvalError(
                "A carrier of plain text has no turns, so nothing says where an answer begins; "
                "give it a reply, such as ' ->'."
            )


SELFIE = Carrier(text="Message:{vectors}\n{question}")
PATCHSCOPES_IDENTITY = Carrier(
    text="cat -> cat\n1135 -> 1135\nhello -> hello\n{vectors}", reply=" ->", chat=False
)


class PatchedPrompt(PromptedBaseline):
    """The base continues a prompt over whose placeholders the vectors are written."""

    def __init__(
        self,
        model: TracedModel,
        *,
        carrier: Carrier = SELFIE,
        inject_layers: tuple[int, ...] | Literal["read"] = (0,),
        name: str = "patched prompt",
        **options: Any,
    ) -> None:
        """A patched prompt.

        Args:
            model: The target; its base carries the prompt.
            carrier: The prompt.
            inject_layers: Blocks after which the vectors are written, each time the same; "read"
                for the layer that they were read at. Items of several layers give the vectors of
                each, layer by layer, a placeholder each.
            name: As it stands in tables.
            **options: Of `PromptedBaseline`.

        Raises:
            LayerError: A layer outside the model, or none.
        """
        super().__init__(model, name=name, start=carrier.reply, **options)
        self.carrier = carrier
        if not inject_layers:
            raise LayerError("inject_layers is empty; name at least one block, or 'read'.")
        self.inject_layers: tuple[int, ...] | None = None
        if not isinstance(inject_layers, str):
            self.inject_layers = tuple(model.resolve_layer(layer) for layer in inject_layers)

    def rows(self, items: Sequence[EvalItem]) -> list[Row]:
        """The carrier with each item's vectors.

        Raises:
            PlaceholderError: A placeholder is not one token of its own.
            LayerError: `inject_layers` is "read", and an item holds several layers.
        """
        return [self._row(item) for item in items]

    def _row(self, item: EvalItem) -> Row:
        vectors = item.activations.vectors.flatten(0, 1)
        layers = self.inject_layers
        if layers is None:
            if len(item.layers) > 1:
                raise LayerError(
                    f"Item {item.id!r} was read at layers {list(item.layers)}, and the vectors go "
                    "back to the one layer that they were read at. Read one layer, or name "
                    "inject_layers."
                )
            layers = item.layers
        span = self.carrier.placeholder * vectors.shape[0]
        before, _, after = self.carrier.text.partition("{vectors}")
        before = before.replace("{question}", item.question)
        after = after.replace("{question}", item.question)
        content = before + span + after
        if self.carrier.chat:
            chat = [{"role": "user", "content": content}]
            text = reply_prompt(self.model, chat, **self.chat_template_kwargs) + self.start
        else:
            text = content + self.start
        if text.count(content) != 1:
            raise PlaceholderError(
                "The chat template does not write the carrier's text once and as it is, so its "
                "placeholders cannot be found. Use a carrier that does not begin or end with a "
                "space, or one with chat=False."
            )
        first = text.index(content) + len(before)
        ids, offsets = encode_rendered(self.model, text, special=not self.carrier.chat)
        by_end = {end: index for index, (begin, end) in enumerate(offsets) if end > begin}
        width = len(self.carrier.placeholder)
        places = []
        for number in range(vectors.shape[0]):
            begin, end = first + number * width, first + (number + 1) * width
            index = by_end.get(end)
            before_it = offsets[index - 1][1] if index else 0
            if index is None or offsets[index][0] < begin or before_it > begin:
                raise PlaceholderError(
                    f"The placeholder {self.carrier.placeholder!r} is not one token of its own in "
                    f"the carrier's prompt, with the tokenizer of {self.model.name}. Give the "
                    "Carrier another placeholder."
                )
            places.append(index)
        return Row(token_ids=ids, vectors=vectors, places=tuple(places), inject_layers=layers)
