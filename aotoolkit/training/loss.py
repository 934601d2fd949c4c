"""The loss of a batch: logits only where an answer's token is to be predicted.

A prompt of 100 tokens has an answer of perhaps five, and with a vocabulary of 150,000 the logits of
the other 95 would be most of a step's memory and much of its time. The hidden states are picked
where they enter the head, by a hook, so that the forward of the whole model runs, as
DistributedDataParallel and FSDP need, whatever the architecture calls its head.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from aotoolkit.errors import HookNotFiredError
from aotoolkit.oracle.injection import injecting
from aotoolkit.training.collator import OracleBatch


def answer_logits(
    model: nn.Module,
    batch: OracleBatch,
    *,
    block: nn.Module,
    head: nn.Module,
    inject: bool = True,
) -> tuple[Float[Tensor, "n v"], Int[Tensor, " n"]]:
    """Logits that predict the answers' tokens, and those tokens, row after row.

    With gradient checkpointing the block runs again in the backward pass: then open
    `injecting(block, batch.injection)` around forward *and* backward yourself, and pass
    `inject=False` here.

    Args:
        model: what is called; a causal LM, or a wrapper around one such as DDP's.
        batch: the batch.
        block: the block of it after which vectors are injected.
        head: its output embeddings, `hf_model.get_output_embeddings()`.
        inject: False injects nothing here, for what the oracle says without evidence.

    Raises:
        HookNotFiredError: the head did not run as a module.
        InjectionError: the block did not run.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    # A token is predicted from the one before it; an answer never begins a prompt.
    cols = batch.answer_cols - 1
    with contextlib.ExitStack() as stack:
        if inject:
            stack.enter_context(injecting(block, batch.injection))
        stack.enter_context(_only_at(head, batch.answer_rows, cols))
        logits = model(**inputs).logits
    return logits[0], batch.answer_ids


def oracle_loss(logits: Float[Tensor, "n v"], labels: Int[Tensor, " n"], num_tokens: int) -> Tensor:
    """Summed cross-entropy over the number of the global batch's answer tokens.

    Summed over the processes and pieces of a global batch this is the mean over its tokens.
    """
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / num_tokens


@contextlib.contextmanager
def _only_at(head: nn.Module, rows: Int[Tensor, " n"], cols: Int[Tensor, " n"]) -> Iterator[None]:
    """Inside, the head sees the hidden states at (rows, cols) alone, as `1 n d`."""
    fired = False

    def pick(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal fired
        fired = True
        hidden, *rest = args
        return hidden[rows.to(hidden.device), cols.to(hidden.device)][None], *rest

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
    if not fired:
        raise HookNotFiredError(
            f"The head {type(head).__name__} did not run as a module, so logits cannot be computed "
            "where the answers are alone. Give the model's own output embeddings "
            "(hf_model.get_output_embeddings())."
        )
