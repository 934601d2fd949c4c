"""What an oracle would have to be told about the target for its answers to be the wanted ones.

The loss is -log p(answer | vectors, question) under the frozen oracle, per token of the answers.
Prompt, injection and position rule are those of asking, from the oracle's contract; the transform
is as the oracle learned with it, so that nothing is recalled.

The gradient is taken in two parts. Here it goes as far as the vectors, while the oracle's adapter
is live; the caller takes it on into the target, while the target's adapter is live. So both may
share one set of base weights, and blocks that run again in the backward pass (gradient
checkpointing) run with the adapter that they ran with before.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aotoolkit.errors import ContextLengthError, LayerError
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.batch import Row, collate, span_shift
from aotoolkit.oracle.injection import injecting
from aotoolkit.oracle.prompt import OraclePrompt, render_prompt
from aotoolkit.steering.behaviour import QuestionAnswer
from aotoolkit.steering.target import checkpointing


@dataclass(frozen=True, eq=False)
class OracleItem:
    """One prompt of the oracle: a pair, asked about places of one row of the target's batch.

    Attributes:
        prompt: with the wanted answer.
        layers: whose vectors it is about.
        row: of the target's batch.
        positions: of that row.
        token_ids: the target's tokens there.
    """

    prompt: OraclePrompt
    layers: tuple[int, ...]
    row: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]

    def at(self, row: int) -> "OracleItem":
        """The same about another row."""
        return dataclasses.replace(self, row=row)

    @property
    def num_label_tokens(self) -> int:
        """Tokens of the answer, with the one that ends it."""
        assert self.prompt.answer_start is not None, "rendered with an answer"
        assert self.prompt.answer_end is not None, "rendered with an answer"
        return self.prompt.answer_end - self.prompt.answer_start


class OracleLoss:
    """The loss under one oracle, and its gradient in the vectors.

    Args:
        oracle: it stays as it is.
        checkpointed: keeps only the blocks' inputs for the backward pass.
        tokens_per_pass: of the oracle's prompts, padding included, in one pass.
    """

    def __init__(
        self, oracle: Oracle, *, checkpointed: bool = False, tokens_per_pass: int = 4096
    ) -> None:
        self.oracle = oracle
        self.checkpointed = checkpointed
        self.tokens_per_pass = tokens_per_pass

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuses layers of which the oracle's transform has no statistics.

        Raises:
            LayerError: there are such.
        """
        transform = self.oracle.transform
        missing = [layer for layer in layers if layer not in transform.layers]
        if transform.kind != "none" and missing:
            raise LayerError(
                f"The oracle's transform {transform.kind!r} has statistics of layers "
                f"{list(transform.layers)}, not of {missing}. Steer by those layers."
            )

    def item(
        self,
        pair: QuestionAnswer,
        *,
        layers: tuple[int, ...],
        row: int,
        positions: Sequence[int],
        context_ids: Sequence[int],
    ) -> OracleItem:
        """The oracle's prompt for a pair about places of a target's prompt.

        Raises:
            ContextLengthError: it is longer than the oracle's context.
            QuestionError, LayerError, PlaceholderError: see `render_prompt`.
        """
        prompt = render_prompt(
            self.oracle.tokenizer,
            self.oracle.contract,
            pair.question,
            layers=layers,
            num_positions=len(positions),
            answer=pair.answer,
        )
        limit = self.oracle.model.context_length
        if limit is not None and len(prompt.token_ids) > limit:
            raise ContextLengthError(
                f"The oracle's prompt for {pair.question!r} has {len(prompt.token_ids)} tokens "
                f"with its answer; the context of {self.oracle.model.name} is {limit}. Read fewer "
                "positions (window=10), or shorter prompts."
            )
        chosen = tuple(context_ids[position] for position in positions)
        return OracleItem(prompt, layers, row, tuple(positions), chosen)

    def __call__(
        self,
        reads: dict[int, Float[Tensor, "b s d"]],
        items: Sequence[OracleItem],
        *,
        gradients: bool = True,
    ) -> tuple[float, dict[int, Float[Tensor, "b s d"]]]:
        """Mean loss a token, and its gradient in `reads` (empty without `gradients`).

        Args:
            reads: layer -> residual stream of the target's batch; taken as constants.
            items: what is asked about it.
            gradients: whether there shall be a gradient.
        """
        leaves = {layer: read.detach().requires_grad_(gradients) for layer, read in reads.items()}
        sums = {layer: torch.zeros_like(leaf) for layer, leaf in leaves.items() if gradients}
        count = sum(item.num_label_tokens for item in items)
        total = 0.0
        for piece in self._pieces(items):
            loss, found = self._piece(leaves, piece, count, gradients=gradients)
            total += loss
            for layer, gradient in found.items():
                sums[layer] += gradient
        return total, sums

    def _pieces(self, items: Sequence[OracleItem]) -> list[list[OracleItem]]:
        """Items that run together: of the same layers, for which one coefficient may be best."""
        order = sorted(items, key=lambda item: (item.layers, len(item.prompt.token_ids)))
        pieces: list[list[OracleItem]] = []
        for item in order:
            tokens = (len(pieces[-1]) + 1) * len(item.prompt.token_ids) if pieces else 0
            if not pieces or pieces[-1][0].layers != item.layers or tokens > self.tokens_per_pass:
                pieces.append([])
            pieces[-1].append(item)
        return pieces

    def _piece(
        self,
        leaves: dict[int, Tensor],
        items: Sequence[OracleItem],
        count: int,
        *,
        gradients: bool,
    ) -> tuple[float, dict[int, Tensor]]:
        oracle, model = self.oracle, self.oracle.model
        recommended = oracle.contract.recommended.for_layers(items[0].layers).coefficient
        contract = oracle.contract
        if recommended is not None:
            contract = dataclasses.replace(contract, coefficient=recommended)
        with contextlib.ExitStack() as stack:
            stack.enter_context(model.inference(oracle.adapter))
            stack.enter_context(torch.set_grad_enabled(gradients))
            rows = [self._row(leaves, item) for item in items]
            ids, mask = model.pad([row.prompt.token_ids for row in rows])
            batch = collate(rows, input_ids=ids, attention_mask=mask, contract=contract)
            stack.enter_context(injecting(model.blocks[contract.inject_layer], batch.injection))
            if self.checkpointed and gradients:
                stack.enter_context(checkpointing(model.blocks))
            takes = inspect.signature(model.hf_model.forward).parameters
            inputs: dict[str, Any] = {"use_cache": False}
            if "position_ids" in takes:
                inputs["position_ids"] = batch.position_ids
            # Left-padded, the answers stand at the end.
            longest = max(len(i.prompt.token_ids) - _start(i) for i in items)
            if "logits_to_keep" in takes:
                inputs["logits_to_keep"] = longest + 1
            logits = model.hf_model(input_ids=ids, attention_mask=mask, **inputs).logits
            loss = sum(
                (_answer_loss(own, item) for own, item in zip(logits, items, strict=True)),
                start=logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32)),
            )
            loss = loss / count
            used = [layer for layer in leaves if any(layer in item.layers for item in items)]
            found = (
                torch.autograd.grad(loss, [leaves[layer] for layer in used]) if gradients else ()
            )
        return float(loss.detach()), dict(zip(used, found, strict=False))

    def _row(self, leaves: dict[int, Tensor], item: OracleItem) -> Row:
        places = list(item.positions)
        vectors = torch.stack([leaves[layer][item.row, places] for layer in item.layers])
        device = self.oracle.model.device
        # Where one answer is recalled for sure, that half of a vector has almost no gradient.
        transformed = self.oracle.transform.as_trained.apply(
            vectors.to(device), layers=item.layers, token_ids=item.token_ids
        )
        shift = span_shift(self.oracle.contract, item.positions)
        return Row(item.prompt, transformed.flatten(0, 1), shift)


def _start(item: OracleItem) -> int:
    assert item.prompt.answer_start is not None, "rendered with an answer"
    return item.prompt.answer_start


def _answer_loss(logits: Float[Tensor, "k v"], item: OracleItem) -> Tensor:
    """Summed cross-entropy of an item's answer, from the logits of its last columns."""
    assert item.prompt.answer_end is not None, "rendered with an answer"
    length = len(item.prompt.token_ids)
    begin, end = _start(item) - length, item.prompt.answer_end - length
    ids = torch.tensor(item.prompt.token_ids[begin : end or None], device=logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return nn.functional.cross_entropy(logits[begin - 1 : end - 1].to(wide), ids, reduction="sum")
