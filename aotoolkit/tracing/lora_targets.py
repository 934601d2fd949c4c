"""Which weights of a model a LoRA adapts: found by structure, never by a model's name.

The linear layers of the language model's blocks, and nothing else: not the embeddings, not a vision
tower (whose blocks are others), not the output head and not what routes tokens to experts, unless
they are asked for. Routed experts are one fused parameter a block in transformers 5, which PEFT
adapts as `target_parameters`; where they are modules of their own they are linear layers as any.

Oracles and steered targets are adapted alike, so this stands below both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from aotoolkit.errors import LoraTargetError
from aotoolkit.tracing.model import TracedModel

# nn.Linear and its quantised relatives (bitsandbytes' Linear8bitLt and Linear4bit derive from it).
LINEAR_LAYERS = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class LoraTargets:
    """Names, from the root of `TracedModel.hf_model`.

    Attributes:
        modules: linear layers.
        parameters: fused experts, parameters of three dimensions.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def lora_targets(
    model: TracedModel,
    *,
    num_blocks: int | None = None,
    experts: bool = True,
    routers: bool = False,
    head: bool = False,
) -> LoraTargets:
    """The weights of a model that LoRA adapts.

    Args:
        model: the model; what adapters it has do not matter.
        num_blocks: only the first so many blocks; default: all.
        experts: whether routed experts are among them.
        routers: whether what chooses the experts, or weighs a shared one, is among them.
        head: whether the output head is.

    Raises:
        LoraTargetError: the blocks have no linear layer; or what is asked for is not there, or of
            a kind that PEFT cannot adapt.
    """
    # PEFT leaves its wrappers where an adapter was deleted.
    names = {module: _plain(name) for name, module in model.hf_model.named_modules()}
    num_experts = _num_experts(model)
    modules: list[str] = []
    parameters: list[str] = []
    found_routers = False
    of_adapters = _modules_of_adapters(model)
    for block in model.blocks[:num_blocks]:
        for path, module in block.named_modules():
            if module in of_adapters:
                continue
            parent = block.get_submodule(path.rpartition(".")[0])
            is_expert = "experts" in path.split(".")
            if _is_router(module, parent, num_experts):
                found_routers = True
                if routers and not isinstance(module, LINEAR_LAYERS):
                    parameters += _weights(names[module], module, dimensions=2)
                elif routers:
                    modules.append(names[module])
            elif isinstance(module, LINEAR_LAYERS) and (experts or not is_expert):
                modules.append(names[module])
            elif experts and not isinstance(module, nn.modules.conv._ConvNd):
                parameters += _weights(names[module], module, dimensions=3)
    if not modules and not parameters:
        raise LoraTargetError(
            f"The blocks of {type(model.hf_model).__name__} have no linear layer that LoRA could "
            "adapt. It needs models whose blocks have torch.nn.Linear layers."
        )
    if routers and not found_routers:
        raise LoraTargetError(
            f"lora_routers is set, and {type(model.hf_model).__name__} has no routers; leave it "
            "out."
        )
    if head:
        output: Any = model.hf_model.get_output_embeddings()
        if not isinstance(output, LINEAR_LAYERS):
            raise LoraTargetError(
                f"lora_head is set, and the output head of {type(model.hf_model).__name__} is "
                f"{type(output).__name__}, not a linear layer; leave it out."
            )
        modules.append(names[output])
    return LoraTargets(tuple(modules), tuple(parameters))


def adapted_weights(model: TracedModel, adapter: str) -> LoraTargets:
    """What an adapter of a model does adapt, by the names that the weights have without it."""
    modules: list[str] = []
    parameters: list[str] = []
    for name, module in model.hf_model.named_modules():
        plain = _plain(name)
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise LoraTargetError(
                f"{plain} would be trained whole, not through LoRA (modules_to_save)."
            )
        if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
            continue
        parameter = getattr(module, "parameter_name", None)
        if parameter is None:
            modules.append(plain)
        else:
            parameters.append(f"{plain}.{parameter}")
    return LoraTargets(tuple(modules), tuple(parameters))


def check_adapted(model: TracedModel, adapter: str, wanted: LoraTargets) -> None:
    """Refuses an adapter that PEFT attached elsewhere than it was told.

    PEFT rewrites the targets of some Mixture-of-Experts models for older checkpoints' sake.

    Raises:
        LoraTargetError: something is missing, or adapted though it should not be.
    """
    found = adapted_weights(model, adapter)
    given = set(wanted.modules) | set(wanted.parameters)
    attached = set(found.modules) | set(found.parameters)
    if given == attached:
        return
    raise LoraTargetError(
        f"PEFT did not adapt what it was told to: {len(given - attached)} weights are missing "
        f"({', '.join(sorted(given - attached)[:3]) or 'none'}), {len(attached - given)} too many "
        f"({', '.join(sorted(attached - given)[:3]) or 'none'}). Leave the experts out with "
        "lora_experts=False."
    )


def _modules_of_adapters(model: TracedModel) -> set[nn.Module]:
    """What adapters added to the layers that they adapt: linear layers too, and not the model's."""
    added: set[nn.Module] = set()
    for layer in model.hf_model.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in layer.adapter_layer_names:
                held = getattr(layer, name, None)
                if isinstance(held, nn.Module):
                    added.update(held.modules())
    return added


def _num_experts(model: TracedModel) -> int | None:
    """How many experts are routed between, by whichever name the config has for it."""
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        value = getattr(model.config, name, None)
        if isinstance(value, int):
            return value
    return None


def _is_router(module: nn.Module, parent: nn.Module, num_experts: int | None) -> bool:
    """Beside experts, and with one output for each of them, or one in all (a shared expert's)."""
    if num_experts is None or not hasattr(parent, "experts") or module is parent.experts:
        return False
    weight: Any = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.Tensor) and weight.ndim == 2
    return is_matrix and module is not parent and weight.shape[0] in (num_experts, 1)


def _plain(name: str) -> str:
    """The name that a module had before PEFT wrapped it."""
    return name.replace(".base_layer", "")


def _weights(name: str, module: nn.Module, *, dimensions: int) -> list[str]:
    return [
        f"{name}.{own}"
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == dimensions
    ]
