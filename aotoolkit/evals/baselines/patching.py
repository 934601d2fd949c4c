"""Vectors written into a prompt of the untrained base: SelfIE and Patchscopes.

SelfIE (arXiv:2403.10949) writes them over the placeholders of a request to repeat or to explain a
message; Patchscopes (arXiv:2401.06102) over the last word of a few-shot prompt. Both replace, and
both train nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aotoolkit.errors import EvalError, LayerError, PlaceholderError
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


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """The prompt that carries the vectors.

    Attributes:
        text: With `{vectors}` once, and `{question}` where the item's question goes.
        placeholder: What stands in the prompt for each vector; one token.
        reply: How the reply begins; may hold `{question}`.
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


SELFIE = Carrier(text="{vectors}\n{question}", reply="")
PATCHSCOPES_IDENTITY = Carrier(
    text="cat -> cat\n1135 -> 1135\nhello -> hello\n{vectors}", reply=" ->", chat=False
)


class PatchedPrompt:
    """The base continues a prompt over whose placeholders the vectors are written."""

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        *,
        carrier: Carrier = SELFIE,
        inject_layers: tuple[int, ...] | Literal["read"] = (0,),
        name: str = "patched prompt",
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> None:
        """A patched prompt.

        Args:
            model: The target; its base carries the prompt.
            carrier: The prompt.
            inject_layers: Blocks after which the vectors are written, each time the same; "read"
                for the layer that they were read at, one vector a placeholder. Items of several
                layers give the vectors of each, layer by layer.
            name: As it stands in tables.
            max_new_tokens: Longest answer.
            batch_size: Prompts in one batch.

        Raises:
            LayerError: A layer outside the model, or none.
        """
        self.model = model
        self.carrier = carrier
        if not inject_layers:
            raise LayerError("inject_layers is empty; name at least one block, or 'read'.")
        self.inject_layers: tuple[int, ...] | None = None
        if not isinstance(inject_layers, str):
            self.inject_layers = tuple(model.resolve_layer(layer) for layer in inject_layers)
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`.

        Raises:
            PlaceholderError: A placeholder is not one token of its own.
            LayerError: `inject_layers` is "read", and an item holds several layers.
        """
        rows = [self.row(item) for item in items]
        texts = generate_replies(
            self.model,
            rows,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            description=self.name,
        )
        # Where the carrier has begun the reply a choice goes on in it.
        begun = bool(self.carrier.reply) or not self.carrier.chat
        candidates = [
            [f" {choice}" if begun else item.said(choice) for choice in item.choices]
            for item in items
        ]
        scores = reply_log_probs(
            self.model, rows, candidates, ended=not begun, batch_size=self.batch_size
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

    def row(self, item: EvalItem) -> Row:
        """The carrier with an item's vectors."""
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
        start = self.carrier.reply.replace("{question}", item.question)
        content = before + span + after
        if self.carrier.chat:
            text = reply_prompt(self.model, [{"role": "user", "content": content}], start)
        else:
            text = content + start
        if text.count(content) != 1:
            raise PlaceholderError(
                "The chat template does not write the carrier's text once and as it is, so its "
                "placeholders cannot be found. Use a carrier that does not begin or end with a "
                "space, or one with chat=False."
            )
        first = text.index(content) + len(before)
        ids, offsets = encode_rendered(self.model, text)
        by_end = {end: index for index, (begin, end) in enumerate(offsets) if end > begin}
        width = len(self.carrier.placeholder)
        places = []
        for number in range(vectors.shape[0]):
            begin, end = first + number * width, first + (number + 1) * width
            index = by_end.get(end)
            if index is None or offsets[index][0] < begin or offsets[index - 1][1] > begin:
                raise PlaceholderError(
                    f"The placeholder {self.carrier.placeholder!r} is not one token of its own in "
                    f"the carrier's prompt, with the tokenizer of {self.model.name}. Give the "
                    "Carrier another placeholder."
                )
            places.append(index)
        return Row(token_ids=ids, vectors=vectors, places=tuple(places), inject_layers=layers)
