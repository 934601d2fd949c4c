"""Reading a target with gradients: into its live adapter, or into vectors that are added to it.

Rows are padded on the *right*: attention is causal, so no token sees the padding behind it, and the
forward needs neither an attention mask nor position ids. The forward ends after the last block that
is read.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aotoolkit.tracing import TracedModel


class _AfterLastBlockError(Exception):
    """Ends a forward whose rest is not needed."""


def right_padded(model: TracedModel, rows: Sequence[Sequence[int]]) -> Int[Tensor, "b s"]:
    """Token ids padded on the right, on the model's device."""
    length = max(map(len, rows))
    # What stands in the padding is seen by no token.
    padded = [[*row, *[row[-1]] * (length - len(row))] for row in rows]
    return torch.tensor(padded, device=model.device)


def differentiable_residuals(
    model: TracedModel,
    input_ids: Int[Tensor, "b s"],
    *,
    layers: Sequence[int],
    adapter: str | None,
    added: Mapping[int, Float[Tensor, " d"]] | None = None,
    cut: bool = False,
    checkpointed: bool = False,
    gradients: bool = True,
) -> dict[int, Float[Tensor, "b s d"]]:
    """Residual stream after some blocks, with gradients or without.

    With `checkpointed`, blocks run again in the backward pass, with the adapter that is live
    *then*: call backward inside `model.inference(adapter)`.

    Args:
        model: the target; the caller holds its lock until backward is done.
        input_ids: right-padded.
        layers: blocks to read.
        adapter: what is live.
        added: block -> what is added to the stream after it, before it is read.
        cut: later blocks get the stream without its gradients, so that each layer's reading moves
            only the blocks since the one before (LatentQA's per-layer loss).
        checkpointed: keeps only the blocks' inputs for the backward pass.
        gradients: whether there is a backward pass at all; without one nothing is kept for it.
    """
    reads: dict[int, Tensor] = {}
    vectors = added or {}

    def read(layer: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if layer in vectors:
                hidden = hidden + vectors[layer].to(hidden)
            if layer in layers:
                reads[layer] = hidden
                hidden = hidden.detach() if cut else hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def stop(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        raise _AfterLastBlockError

    last = max(layers)
    with contextlib.ExitStack() as stack:
        for layer in {*layers, *vectors}:
            stack.callback(model.blocks[layer].register_forward_hook(read(layer)).remove)
        if last + 1 < model.num_layers:
            stack.callback(model.blocks[last + 1].register_forward_pre_hook(stop).remove)
        if checkpointed:
            stack.enter_context(checkpointing(model.blocks[: last + 1]))
        stack.enter_context(model.inference(adapter))
        stack.enter_context(torch.set_grad_enabled(gradients))
        with contextlib.suppress(_AfterLastBlockError):
            model.hf_model(input_ids=input_ids, use_cache=False, **_keep_nothing(model))
    return reads


@contextlib.contextmanager
def checkpointing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a forward of these blocks keeps their inputs only, and backward runs them again.

    transformers' own switch needs models in training mode, whose dropout would make the target
    another than the one that is steered. Here forward hooks are outside of what runs again, so
    that what they read or inject happens once.
    """
    kept = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = _checkpointed(block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _checkpointed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _keep_nothing(model: TracedModel) -> dict[str, int]:
    """Where the last block is read, logits of one token at most."""
    takes = inspect.signature(model.hf_model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
