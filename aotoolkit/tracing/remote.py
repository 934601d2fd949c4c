"""Reads on NDIF, through nnsight's `TransformersModel`.

A remote read ships no weights: the server has the model by its Hub id, and attaches an adapter by
its Hub id. So only what is on the Hub can be read there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nnsight
import torch
from jaxtyping import Float
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor

from aotoolkit.errors import HookNotFiredError, RemoteError
from aotoolkit.tracing.trace import run_trace


def hub_id(what: str, source: str | None) -> str:
    """`source` where it is the Hub id of a model or an adapter.

    Raises:
        RemoteError: it is a folder of this machine, or not known.
    """
    if source is None or Path(source).expanduser().exists() or source.count("/") > 1:
        raise RemoteError(
            f"remote=True needs {what} that is on the Hugging Face Hub, because the server loads "
            f"it by its id; here it is {source or 'an object in memory'!r}. Load it by its Hub "
            "id with TracedModel.from_pretrained (and load_adapter), or leave remote=True out."
        )
    return source


def read(
    model_id: str,
    *,
    revision: str | None,
    adapter_id: str | None,
    blocks_path: str,
    layers: Sequence[int],
    inputs: dict[str, Any],
    remote: bool | str = True,
) -> Float[Tensor, "l b s d"]:
    """`TracedModel.residuals` on another machine; the same forward, without stopping early.

    Args:
        model_id: Hub id.
        revision: of the model on the Hub.
        adapter_id: Hub id of the adapter, None for the base.
        blocks_path: module path of the blocks.
        layers: block indices.
        inputs: of the model's forward.
        remote: True for NDIF; "local" runs nnsight's whole remote path on this machine.
    """
    nnsight.register("aotoolkit")  # ship our functions by value: the server does not have them
    options = {"tokenizer": model_id} | ({} if adapter_id is None else {"peft": adapter_id})
    model = TransformersModel(model_id, revision=revision, task="text-generation", **options)
    blocks = {layer: model.get(f"{blocks_path}.{layer}") for layer in sorted(layers)}

    def read_blocks(_: Any) -> dict[int, Tensor]:
        residuals = {}
        for layer, block in blocks.items():
            output = block.output
            residuals[layer] = output[0] if isinstance(output, tuple) else output
        return residuals

    residuals = run_trace(model, read_blocks, **inputs, remote=remote)
    missing = set(layers) - set(residuals or {})
    if missing:
        raise HookNotFiredError(
            f"The remote run gave nothing for layers {sorted(missing)} of {model_id}. Try again; "
            "if it stays so, compare package versions with nnsight.compare()."
        )
    return torch.stack([residuals[layer].detach().cpu() for layer in layers])
