"""What a steering run will need, measured on one prompt before it begins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from aotoolkit.oracle import Oracle
from aotoolkit.oracle.contract import Window
from aotoolkit.steering.behaviour import Behaviour
from aotoolkit.steering.objective import OracleObjective, OraclesInTurn
from aotoolkit.steering.oracles import as_oracles
from aotoolkit.steering.result import Method, as_prompts
from aotoolkit.steering.steering import (
    check_base,
    layers_to_read,
    new_adapter,
    only_trained,
)
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Prompt

# float32 weights, their gradients, two moments of Adam and the best so far.
_COPIES = 5


@dataclass(frozen=True, kw_only=True)
class SteeringEstimate:
    """Memory of a run.

    Attributes:
        trained_parameters: of the adapter or the vectors.
        base_bytes: of the model and of oracles on copies of it, with all adapters.
        trained_bytes: of what is trained, with gradients, moments and the best so far.
        activation_bytes: what target and oracle keep for the backward pass of one batch.
        available_bytes: what the device has, or on the CPU the machine.
        device: where it was measured.
    """

    trained_parameters: int
    base_bytes: int
    trained_bytes: int
    activation_bytes: int
    available_bytes: int
    device: str

    @property
    def total_bytes(self) -> int:
        """All together."""
        return self.base_bytes + self.trained_bytes + self.activation_bytes

    def __str__(self) -> str:
        parts = {
            "base and oracle": self.base_bytes,
            "what is trained": self.trained_bytes,
            "activations of a batch": self.activation_bytes,
        }
        named = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in parts.items())
        return (
            f"about {self.total_bytes / 2**20:,.1f} MiB ({named}) of "
            f"{self.available_bytes / 2**20:,.0f} MiB, {self.device}"
        )


def estimate(
    model: TracedModel,
    oracle: Oracle | Sequence[Oracle],
    behaviour: Behaviour | Mapping[str, str] | Iterable[tuple[str, str]],
    prompts: Prompt | Sequence[Prompt],
    *,
    method: Method = "single_layer",
    layers: Layer | Sequence[Layer] | None = None,
    window: Window | None = None,
    batch_size: int = 8,
    rank: int = 16,
    gradient_checkpointing: bool = False,
    tokens_per_pass: int = 4096,
) -> SteeringEstimate:
    """Memory of `steer` with the same arguments, from one pass over its longest prompt.

    Raises:
        SteeringError and others: as `steer`.
    """
    oracles = as_oracles(oracle)
    chosen = layers_to_read(model, oracles, method, layers)
    for one in oracles:
        check_base(model, one)
    objective = OraclesInTurn(
        [
            OracleObjective(
                model,
                one,
                Behaviour.of(behaviour),
                as_prompts(prompts),
                method=method,
                layers=chosen,
                window=window,
                batch_size=batch_size,
                gradient_checkpointing=gradient_checkpointing,
                tokens_per_pass=tokens_per_pass,
                seed=0,
            )
            for one in oracles
        ]
    )
    if method == "vector":
        parameters = [
            torch.nn.Parameter(torch.zeros(model.d_model, device=model.device)) for _ in chosen
        ]
        objective.read_with(adapter=None, added=dict(zip(chosen, parameters, strict=True)))
        kept = max(_kept_bytes(one, parameters) for one in objective.objectives)
    else:
        name = "steering_estimate"
        with new_adapter(
            model, name, num_blocks=chosen[-1] + 1, rank=rank, alpha=rank, seed=0
        ) as parameters:
            objective.read_with(adapter=name, added={})
            kept = max(_kept_bytes(one, parameters) for one in objective.objectives)
        model.delete_adapter(name)
    models = {model, *(one.model for one in oracles)}
    trained = sum(parameter.numel() for parameter in parameters)
    return SteeringEstimate(
        trained_parameters=trained,
        base_bytes=sum(
            weight.numel() * weight.element_size()
            for each in models
            for weight in each.hf_model.parameters()
        ),
        trained_bytes=_COPIES * sum(p.numel() * p.element_size() for p in parameters),
        activation_bytes=kept * batch_size,
        available_bytes=_available_bytes(model.device),
        device=str(model.device),
    )


def _kept_bytes(objective: OracleObjective, parameters: Sequence[Any]) -> int:
    """Bytes that autograd keeps for the longest prompt and a pair, weights not counted."""
    longest = max(objective.evaluated, key=lambda pair: len(objective.reads[pair[0]].token_ids))
    weights = {
        weight.untyped_storage().data_ptr()
        for model in {objective.model, objective.loss.oracle.model}
        for weight in model.hf_model.parameters()
    }
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with (
        only_trained({objective.model, objective.loss.oracle.model}, parameters),
        torch.autograd.graph.saved_tensors_hooks(pack, unpack),
    ):
        objective.backward([longest])
    for parameter in parameters:
        parameter.grad = None
    return sum(kept.values())


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
