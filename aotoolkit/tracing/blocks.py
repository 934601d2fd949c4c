"""Finds the decoder blocks by structure, never by a model's name.

A decoder holds its blocks in one `ModuleList` that is as long as the config says the model is
deep. That was unique in all architectures we test. Where it is not (a vision tower as deep as the
decoder), `TracedModel` keeps the one list whose outputs are the model's own hidden states.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from aotoolkit.errors import BlockDiscoveryError


def candidate_block_lists(model: nn.Module, num_layers: int) -> dict[str, nn.ModuleList]:
    """Module path -> list, for each `ModuleList` of `num_layers` modules, outermost only.

    Raises:
        BlockDiscoveryError: the model has no such list.
    """
    found: dict[str, nn.ModuleList] = {}
    lengths: dict[str, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        lengths[path] = len(module)
        nested = any(path.startswith(f"{outer}.") for outer in found)
        if len(module) == num_layers and not nested:
            found[path] = module
    if not found:
        raise BlockDiscoveryError(
            f"{type(model).__name__} has no list of {num_layers} blocks, which is the depth its "
            f"config gives; its lists are {lengths or 'none'}. Tracing needs a decoder-only model "
            "whose blocks stand in one torch.nn.ModuleList."
        )
    return found


def read_error(
    reads: Mapping[int, Float[Tensor, "b s d"]], hidden_states: Sequence[Float[Tensor, "b s d"]]
) -> str | None:
    """What is wrong with `reads` (layer -> block output) beside the model's own `hidden_states`.

    `hidden_states[l + 1]` is the residual stream after block l, but for the last block, after
    which transformers stores the *normalised* stream: that one is only checked for its shape.
    """
    if len(hidden_states) != len(reads) + 1:
        return f"{len(reads)} blocks, but {len(hidden_states)} hidden states (expected one more)"
    last = max(reads)
    for layer, read in reads.items():
        theirs = hidden_states[layer + 1]
        if read.shape != theirs.shape:
            return f"block {layer} gives {tuple(read.shape)}, expected {tuple(theirs.shape)}"
        if layer != last and not torch.allclose(read, theirs, rtol=1e-3, atol=1e-5):
            difference = (read - theirs).abs().max().item()
            return f"block {layer} differs from hidden_states[{layer + 1}] by {difference:.3g}"
    return None


def depth(config: PretrainedConfig) -> int:
    """The number of decoder blocks according to the (text) config."""
    return config.get_text_config(decoder=True).num_hidden_layers
