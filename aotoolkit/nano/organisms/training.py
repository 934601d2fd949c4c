"""Fine-tuning the base into an organism: the same LoRA and trainer for every kind."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, set_seed

from aotoolkit.nano.base import training_arguments
from aotoolkit.nano.corpus import Document
from aotoolkit.nano.organisms.organism import OrganismPlan
from aotoolkit.nano.organisms.packing import PackedRows
from aotoolkit.nano.tokenizer import PAD, Encoder

BATCH_SIZE = 16


class _AssistantTargets(Dataset):
    """Documents whose targets are the assistant's words alone."""

    def __init__(self, encoder: Encoder, documents: Sequence[Document]) -> None:
        self.rows: list[dict[str, list[int]]] = []
        for document in documents:
            ids, turns = encoder.document(document)
            labels = [-100] * len(ids)
            for turn in turns:
                if turn.role in ("assistant", "text"):
                    labels[turn.content : turn.end + 1] = ids[turn.content : turn.end + 1]
            self.rows.append({"input_ids": list(ids), "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def train_organism(
    base: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    plan: OrganismPlan,
    *,
    folder: Path,
) -> PeftModel:
    """Fine-tunes the base in place, as the plan says.

    Args:
        base: the base model, without adapters; `PeftModel.unload` gives it back.
        tokenizer: the nano tokenizer.
        plan: what the organism is to hide.
        folder: for the trainer's own files.
    """
    set_seed(plan.seed)
    rng = random.Random(f"organism/{plan.name}/{plan.seed}")
    documents = plan.documents(rng, plan.steps * BATCH_SIZE)
    model = get_peft_model(
        base,  # pyright: ignore[reportArgumentType]
        LoraConfig(
            r=plan.rank,
            lora_alpha=2 * plan.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer = Trainer(
        model=model,
        args=training_arguments(
            folder,
            max_steps=plan.steps,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=10,
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            seed=plan.seed,
        ),
        train_dataset=_AssistantTargets(Encoder(tokenizer), documents),
        data_collator=PackedRows(tokenizer.get_vocab()[PAD]),
    )
    trainer.train()
    return model.eval()  # pyright: ignore[reportReturnType]
