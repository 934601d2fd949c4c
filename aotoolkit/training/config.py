"""What a training run of an oracle is told."""

import dataclasses
import difflib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from aotoolkit.errors import TrainingSettingsError

Scheduler = Literal["linear", "cosine", "constant_with_warmup"]

# What may change between a run and its continuation: nothing that a loss depends on.
FREE_ON_RESUME = (
    "output_dir",
    "keep_checkpoints",
    "logging_steps",
    "report_to",
    "progress",
    "tokens_per_pass",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
)

# What the trainer decides: each is a setting here, or would undo what checkpoints, scoring and
# batches rely on.
OWNED_ARGUMENTS = frozenset(
    {
        *("output_dir", "num_train_epochs", "max_steps", "seed", "data_seed", "bf16", "use_cpu"),
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio"),
        *("weight_decay", "adam_beta2", "max_grad_norm", "label_smoothing_factor"),
        *("gradient_accumulation_steps", "auto_find_batch_size"),
        *("per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
        *("logging_strategy", "logging_steps", "logging_nan_inf_filter"),
        *("disable_tqdm", "report_to"),
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model"),
        *("save_on_each_node", "load_best_model_at_end"),
        *("metric_for_best_model", "greater_is_better", "push_to_hub", "resume_from_checkpoint"),
        *("remove_unused_columns", "ignore_data_skip", "label_names"),
        "ddp_find_unused_parameters",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one run; the defaults are those of Activation Oracles (arXiv:2512.15674).

    Attributes:
        output_dir: checkpoints, logs and the finished oracle (`oracle`) go here; a run that finds
            a checkpoint there goes on from it.
        num_epochs: passes over the examples; a fraction ends within one.
        max_steps: optimiser steps, instead of `num_epochs`.
        batch_size: examples of one optimiser step, over all processes and accumulation steps.
        tokens_per_pass: a process's part of a batch with more tokens, padding included, is run in
            pieces, one after the other: less memory, the same gradient.
        gradient_accumulation_steps: pieces of one size that it is run in besides, as FSDP needs
            them.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping
            them: much less memory, about a third more time.
        learning_rate: the peak, after warm-up.
        lr_scheduler: from the peak to zero (`linear`, `cosine`), or not.
        warmup_steps: steps from zero to the peak; a number below 1 is a share of all steps.
        weight_decay: of AdamW.
        adam_beta2: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them alone.
        lora_rank: rank r of the adapter.
        lora_alpha: the update counts alpha / r.
        lora_dropout: dropout before the adapter; PEFT has none for fused experts.
        rslora: the update counts alpha / sqrt(r) instead (rank-stabilised, arXiv:2312.03732).
        lora_experts: adapt the experts of Mixture-of-Experts blocks.
        lora_routers: adapt what chooses the experts.
        lora_head: adapt the output head (`lm_head`), as LatentQA does.
        untransformed_steps: for so many first steps vectors are injected as they were read; a
            transform that takes away what a token is leaves nothing easy to learn reading from.
        eval_steps: how often the held-out examples are scored, with and without injection.
        early_stopping_patience: stops after so many scorings in a row without a lower held-out
            loss; None never does.
        save_steps: how often a checkpoint is written.
        keep_checkpoints: how many are kept; with two, a broken one costs one interval.
        logging_steps: how often the training loss is written down.
        report_to: where else than to `output_dir` curves go: `tensorboard` (on disk, under
            `output_dir`), `wandb`, or another integration of transformers.
        seed: of the weights and of the order of examples.
        bf16: run the training forward under bfloat16 autocast; activations are read in the base's
            own dtype all the same.
        progress: show progress bars.
        extra_arguments: more arguments for `transformers.TrainingArguments`, but for those of
            `OWNED_ARGUMENTS`.

    Raises:
        TrainingSettingsError: a value is out of range; the message says which are allowed.
    """

    output_dir: Path
    num_epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 16
    tokens_per_pass: int = 4096
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float = 1e-5
    lr_scheduler: Scheduler = "linear"
    warmup_steps: float = 0.1
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    lora_rank: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.0
    rslora: bool = False
    lora_experts: bool = True
    lora_routers: bool = False
    lora_head: bool = False
    untransformed_steps: int = 0
    eval_steps: int = 500
    early_stopping_patience: int | None = None
    save_steps: int = 500
    keep_checkpoints: int = 2
    logging_steps: int = 10
    report_to: tuple[str, ...] = ("tensorboard",)
    seed: int = 0
    bf16: bool = False
    progress: bool = True
    extra_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        object.__setattr__(self, "report_to", tuple(self.report_to))
        allowed = {
            "num_epochs": (0 < self.num_epochs < math.inf, "a finite number above 0"),
            "max_steps": (self.max_steps is None or self.max_steps >= 1, "1 or more, or None"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a finite number above 0"),
            "adam_beta2": (0 <= self.adam_beta2 < 1, "from 0 up to, not including, 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a finite number, 0 or more"),
            "max_grad_norm": (0 <= self.max_grad_norm < math.inf, "a finite number, 0 or more"),
            "seed": (0 <= self.seed < 2**32, "from 0 to 4294967295"),
            "lr_scheduler": (self.lr_scheduler in get_args(Scheduler), get_args(Scheduler)),
            "warmup_steps": (0 <= self.warmup_steps < math.inf, "a finite number, 0 or more"),
            "lora_dropout": (0 <= self.lora_dropout < 1, "from 0 up to, not including, 1"),
            "early_stopping_patience": (
                self.early_stopping_patience is None or self.early_stopping_patience >= 1,
                "1 or more, or None",
            ),
        } | {
            name: (getattr(self, name) >= 1, "1 or more")
            for name in (
                "batch_size",
                "tokens_per_pass",
                "gradient_accumulation_steps",
                "lora_rank",
                "lora_alpha",
                "eval_steps",
                "save_steps",
                "keep_checkpoints",
                "logging_steps",
            )
        }
        for name, (holds, rule) in allowed.items():
            if not holds:
                raise TrainingSettingsError(
                    f"{name} is {getattr(self, name)!r}; allowed is {rule}."
                )
        if self.batch_size % self.gradient_accumulation_steps:
            raise TrainingSettingsError(
                f"batch_size is {self.batch_size}, which does not divide among "
                f"{self.gradient_accumulation_steps} accumulation steps; choose a multiple of "
                f"{self.gradient_accumulation_steps}."
            )
        self._check_extra_arguments()
        if unknown := sorted(set(self.report_to) - set(INTEGRATION_TO_CALLBACK)):
            raise TrainingSettingsError(
                f"report_to names {', '.join(unknown)}; allowed are "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )

    def _check_extra_arguments(self) -> None:
        known = {field.name for field in dataclasses.fields(TrainingArguments)}
        for name in self.extra_arguments:
            if name in OWNED_ARGUMENTS:
                raise TrainingSettingsError(
                    f"extra_arguments.{name} is for the trainer to decide. Leave it out; what can "
                    "be chosen is a setting of TrainingConfig."
                )
            if name not in known:
                near = difflib.get_close_matches(name, known - OWNED_ARGUMENTS, n=1)
                guess = f"; did you mean {near[0]!r}?" if near else "."
                raise TrainingSettingsError(
                    f"extra_arguments.{name} is no argument of transformers.TrainingArguments"
                    f"{guess}"
                )

    def steps(self, num_examples: int) -> int:
        """Optimiser steps of the run over so many examples."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, int(self.num_epochs * num_examples / self.batch_size))

    def binding(self) -> dict[str, Any]:
        """What a stopped run must be continued with, as JSON holds it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in FREE_ON_RESUME}


def check_reporting(config: TrainingConfig) -> None:
    """Notices before a run what would end it at its first step: a package or login is missing.

    Raises:
        TrainingSettingsError: a service of `report_to` cannot be reached from here.
    """
    available = {*get_available_reporting_integrations(), "flyte"}  # which is not looked for there
    if missing := sorted(set(config.report_to) - available):
        raise TrainingSettingsError(
            f"report_to names {', '.join(missing)}, whose packages are not installed. Install "
            "them, or leave the names out."
        )
    if "wandb" in config.report_to:
        wandb: Any = importlib.import_module("wandb")
        try:
            wandb.login()
        except wandb.errors.UsageError as error:
            raise TrainingSettingsError(
                f"report_to names wandb, which says: {error} Log in, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline."
            ) from error
