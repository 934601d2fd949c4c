"""The LoRA of a training run."""

from peft import LoraConfig

from aotoolkit.errors import LoraTargetError
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.lora_targets import lora_targets
from aotoolkit.training.config import TrainingConfig


def lora_config(model: TracedModel, config: TrainingConfig) -> LoraConfig:
    """The LoRA of a run on this model.

    Raises:
        LoraTargetError: see `lora_targets`; or dropout is asked for on fused experts.
    """
    targets = lora_targets(
        model, experts=config.lora_experts, routers=config.lora_routers, head=config.lora_head
    )
    if targets.parameters and config.lora_dropout:
        raise LoraTargetError(
            f"lora_dropout is {config.lora_dropout}, and {type(model.hf_model).__name__} holds its "
            f"experts as fused parameters ({targets.parameters[0]}), for which PEFT has no "
            "dropout. Set lora_dropout to 0, or leave the experts out with lora_experts=False."
        )
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.rslora,
        target_modules=list(targets.modules),
        target_parameters=list(targets.parameters) or None,
        task_type="CAUSAL_LM",
    )
