"""What a training run of an oracle is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one run.

    Attributes:
        output_dir: checkpoints, logs and the finished oracle go here; a run that finds a checkpoint
            there goes on from it.
        max_steps: training steps.
        batch_size: prompts a step.
        learning_rate: peak, after a linear warm-up; then a cosine down to zero.
        warmup_steps: steps of warm-up.
        weight_decay: of AdamW.
        lora_rank: rank of the LoRA adapter.
        lora_alpha: its alpha; with rank-stabilised scaling the update counts alpha / sqrt(rank).
        lora_dropout: its dropout.
        rslora: use rank-stabilised scaling.
        untransformed_steps: for so many first steps vectors are injected as they were read; a
            transform that takes away what a token is leaves nothing easy to learn reading from.
        eval_steps: how often the validation examples are scored, with and without injection.
        save_steps: how often a checkpoint is written.
        seed: of the weights and of the stream of examples.
        bf16: run the training forward under bfloat16 autocast; activations are read in the base's
            own dtype all the same.
        extra_arguments: more arguments for `transformers.TrainingArguments`.
    """

    output_dir: Path
    max_steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    lora_rank: int = 64
    lora_alpha: int = 64
    lora_dropout: float = 0.0
    rslora: bool = True
    untransformed_steps: int = 0
    eval_steps: int = 500
    save_steps: int = 500
    seed: int = 0
    bf16: bool = False
    extra_arguments: dict[str, Any] = field(default_factory=dict)
