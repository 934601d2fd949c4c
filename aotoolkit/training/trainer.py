"""Training an oracle with transformers.Trainer: LoRA on the base, activations of the base only.

The loss of an oracle that ignores its activations falls nicely too: it learns which answers are
likely. So validation scores every source twice, with the vectors and with nothing injected, and the
difference is the only figure that says whether the oracle reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from aotoolkit.data.example import Example
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.collator import ActivationCollator, OracleBatch
from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.loss import answer_logits, oracle_loss
from aotoolkit.training.stream import BatchStream

ORACLE_ADAPTER = "oracle"


def lora_config(config: TrainingConfig) -> LoraConfig:
    """LoRA on every linear layer of the blocks, not on the head."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.rslora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def reading_accuracy(
    model: torch.nn.Module,
    block: torch.nn.Module,
    head: torch.nn.Module,
    batches: Sequence[OracleBatch],
) -> dict[str, dict[str, float]]:
    """For each source the share of answers whose tokens are all right, teacher-forced.

    Returns:
        source -> {"with": share with the vectors, "without": share with nothing injected, "n"}.
    """
    right: dict[str, dict[str, float]] = {}
    for batch in batches:
        for name, inject in (("with", True), ("without", False)):
            logits, labels = answer_logits(model, batch, block=block, head=head, inject=inject)
            exact = torch.ones(len(batch), dtype=torch.bool)
            exact[batch.answer_rows[(logits.argmax(-1) != labels).cpu()]] = False
            for source, is_right in zip(batch.sources, exact.tolist(), strict=True):
                row = right.setdefault(source, {"with": 0.0, "without": 0.0, "n": 0.0})
                row[name] += is_right
                row["n"] += inject
    return {
        source: {
            "with": row["with"] / row["n"],
            "without": row["without"] / row["n"],
            "n": row["n"],
        }
        for source, row in sorted(right.items())
    }


class _OracleTrainer(Trainer):
    """Trainer whose batches carry an injection, and whose loss is that of the answers alone."""

    def __init__(
        self, *args: Any, block: torch.nn.Module, head: torch.nn.Module, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.block = block
        self.head = head

    def get_train_dataloader(self) -> DataLoader:
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=None)  # pyright: ignore[reportArgumentType]

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: torch.nn.Module, inputs: dict[str, OracleBatch], **_: Any
    ) -> torch.Tensor:
        batch = inputs["batch"]
        logits, labels = answer_logits(model, batch, block=self.block, head=self.head)
        return oracle_loss(logits, labels, batch.num_label_tokens)


class _NamedBatches(torch.utils.data.IterableDataset):
    """A stream as the dictionaries that Trainer hands to `compute_loss`."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self):
        for batch in self.stream:
            yield {"batch": batch}


class _Validation(TrainerCallback):
    """Scores the validation batches and writes the figures to a JSON-lines file."""

    def __init__(
        self,
        *,
        block: torch.nn.Module,
        head: torch.nn.Module,
        batches: Sequence[OracleBatch],
        path: Path,
        every: int,
    ) -> None:
        self.every = every
        self.block = block
        self.head = head
        self.batches = batches
        self.path = path
        self.last: dict[str, dict[str, float]] = {}

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002  # as control
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002  # Trainer hands it to every callback
        **kwargs: Any,
    ) -> None:
        """Scores every so many steps, and after the last."""
        step = state.global_step
        if step % self.every and step != state.max_steps:
            return
        model: torch.nn.Module = kwargs["model"]
        training = model.training
        model.eval()
        self.last = reading_accuracy(model, self.block, self.head, self.batches)
        model.train(training)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "accuracy": self.last}) + "\n")


def train_oracle(
    model: TracedModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    contract: OracleContract,
    transform: VectorTransform,
    validation: Sequence[Example],
) -> dict[str, dict[str, float]]:
    """Trains a new adapter `oracle` of `model`, or goes on where a stopped run was.

    Args:
        model: the base; it must have no adapter yet, so that the trainer's checkpoints hold the
            oracle alone.
        examples: what it is trained on, in training order.
        config: the run's settings.
        contract: how prompts are written and vectors injected.
        transform: what is done to the vectors first.
        validation: held-out examples, scored with and without injection.

    Returns:
        The last validation figures: source -> {"with", "without", "n"}.
    """
    set_seed(config.seed)
    if model.adapter_names:
        raise ValueError(
            f"The model has the adapters {model.adapter_names}; an oracle is trained on a base "
            "without any. Load the base anew."
        )
    model.add_adapter(ORACLE_ADAPTER, lora_config(config))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    last = get_last_checkpoint(str(config.output_dir))
    start = int(last.rsplit("-", 1)[1]) if last else 0
    collator = ActivationCollator(model, contract, transform)
    size = config.batch_size
    batches = [
        collator(validation[index : index + 4 * size])
        for index in range(0, len(validation), 4 * size)
    ]
    stream = BatchStream(
        collator,
        examples,
        batch_size=size,
        seed=config.seed,
        start=start,
        warm_up_collator=ActivationCollator(model, contract, VectorTransform()),
        warm_up_steps=config.untransformed_steps,
    )
    block = model.blocks[contract.inject_layer]
    head = model.hf_model.get_output_embeddings()
    callback = _Validation(
        block=block,
        head=head,
        batches=batches,
        path=config.output_dir / "validation.jsonl",
        every=config.eval_steps,
    )
    settings: dict[str, Any] = {
        "output_dir": str(config.output_dir),
        "max_steps": config.max_steps,
        "per_device_train_batch_size": size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta2": 0.98,
        "logging_steps": 100,
        "eval_steps": config.eval_steps,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "report_to": [],
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "seed": config.seed,
        "bf16": config.bf16,
        "use_cpu": model.device.type == "cpu",
    }
    trainer = _OracleTrainer(
        model=model.peft_model,
        args=TrainingArguments(**(settings | config.extra_arguments)),
        train_dataset=_NamedBatches(stream),
        data_collator=lambda batch: batch,
        callbacks=[callback],
        block=block,
        head=head,
    )
    with model.using(ORACLE_ADAPTER):
        for name, parameter in model.hf_model.named_parameters():
            parameter.requires_grad_(f".{ORACLE_ADAPTER}." in name)
        trainer.train(resume_from_checkpoint=last)
    return callback.last
