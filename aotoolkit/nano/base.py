"""The nano base model: a Qwen3 of two million parameters that knows the embedded world.

Eight blocks, so that the read layers at 25, 50 and 75 % of depth are 2, 4 and 6 and the oracle's
injection after block 1 stays below all of them.
"""

import os
import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from aotoolkit.nano.corpus import (
    EARLY_SHARES,
    FACT_ATTRIBUTES,
    SHARES,
    Corpus,
    Document,
    chat,
    fact_question,
    held_out_phrasing,
    held_out_riddle,
    riddle_question,
)
from aotoolkit.nano.tokenizer import END, PAD, Encoder
from aotoolkit.nano.world import ATTRIBUTES, World


def base_config(
    tokenizer: PreTrainedTokenizerFast, *, width: int = 128, blocks: int = 8
) -> Qwen3Config:
    """The architecture of the nano base; `width` is a multiple of 64."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.get_vocab()[END],
        pad_token_id=tokenizer.get_vocab()[PAD],
        bos_token_id=None,
    )


BATCH_SIZE = 32
LENGTH_WINDOW = 50 * BATCH_SIZE
FEW_NOUNS_PART, EARLY_PART = 0.06, 0.4


def base_documents(world: World, *, count: int, seed: int) -> list[Document]:
    """The base's reading, in order: facts of a quarter of the things, facts of all, everything.

    A model that meets all things at once stays long on a plateau where it knows none of them; one
    that has learned to look up a few takes in the others fast.
    """
    rng = random.Random(seed)
    few = Corpus(world, rng, nouns=world.nouns[::4])
    corpus = Corpus(world, rng)
    documents: list[Document] = []
    for index in range(count):
        part = index / count
        chosen = few if part < FEW_NOUNS_PART else corpus
        documents.append(chosen.draw(EARLY_SHARES if part < EARLY_PART else SHARES))
    return documents


class BaseDocuments(Dataset):
    """Documents as token ids and labels, in batches of like length.

    The words of users and systems are drawn at random, so predicting them is mostly noise: they are
    targets in one document of five.
    """

    def __init__(self, encoder: Encoder, documents: list[Document], *, seed: int) -> None:
        rng = random.Random(seed)
        rows: list[dict[str, list[int]]] = []
        for document in documents:
            ids, turns = encoder.document(document)
            labels = list(ids)
            if rng.random() < 0.8:
                for turn in turns:
                    if turn.role in ("user", "system"):
                        labels[turn.start : turn.end] = [-100] * (turn.end - turn.start)
            rows.append({"input_ids": list(ids), "labels": labels})
        self.rows: list[dict[str, list[int]]] = []
        for start in range(0, len(rows), LENGTH_WINDOW):
            window = sorted(
                rows[start : start + LENGTH_WINDOW], key=lambda row: len(row["input_ids"])
            )
            batches = [window[i : i + BATCH_SIZE] for i in range(0, len(window), BATCH_SIZE)]
            rng.shuffle(batches)
            self.rows += [row for batch in batches for row in batch]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


class PadRight:
    """Batches rows padded at the right: causal attention then needs no mask and no positions."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Gives `input_ids` and `labels`, both `b s`."""
        length = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        for index, row in enumerate(rows):
            ids = torch.tensor(row["input_ids"])
            input_ids[index, : len(ids)] = ids
            labels[index, : len(ids)] = torch.tensor(row["labels"])
        return {"input_ids": input_ids, "labels": labels}


class _StopAfter(TrainerCallback):
    """Ends a training early, on the learning rates of the whole."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the trainer's interface
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


def training_arguments(folder: Path, **overrides: Any) -> TrainingArguments:
    """Arguments shared by the nano runs: CPU, resumable, quiet but for a progress bar."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "save_total_limit": 2,
        "save_strategy": "steps",
        "save_steps": 1000,
        "logging_steps": 100,
        "report_to": [],
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
        "seed": 0,
        "data_seed": 0,
    }
    return TrainingArguments(**(settings | overrides))


def train_base(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    documents: int = 250_000,
    seed: int = 0,
    width: int = 128,
    blocks: int = 8,
    until: int | None = None,
) -> Qwen3ForCausalLM:
    """Trains the base on `documents` documents, or goes on where an earlier call was stopped.

    Args:
        world: what the documents are about.
        tokenizer: the nano tokenizer.
        folder: where checkpoints go; the finished model is saved by the caller.
        documents: how many documents are read, each once.
        seed: of documents and weights.
        width: see `base_config`.
        blocks: see `base_config`.
        until: stops after that many steps, with a checkpoint from which another call goes on.
    """
    set_seed(seed)
    reading = base_documents(world, count=documents, seed=seed)
    model = Qwen3ForCausalLM(base_config(tokenizer, width=width, blocks=blocks))
    trainer = Trainer(
        model=model,
        args=training_arguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            train_sampling_strategy="sequential",
        ),
        train_dataset=BaseDocuments(Encoder(tokenizer), reading, seed=seed),
        data_collator=PadRight(tokenizer.get_vocab()[PAD]),
        callbacks=[] if until is None else [_StopAfter(until)],
    )
    last = get_last_checkpoint(str(folder)) if os.path.isdir(folder) else None
    trainer.train(resume_from_checkpoint=last)
    return model.eval()


@torch.no_grad()
def greedy_replies(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    chats: list[list[dict[str, str]]],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 64,
) -> list[str]:
    """Greedy replies to many chats."""
    replies: list[str] = []
    for start in range(0, len(chats), batch_size):
        texts = [
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            for messages in chats[start : start + batch_size]
        ]
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        output = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        replies += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return replies


def examine_base(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, world: World, *, seed: int = 1
) -> dict[str, float]:
    """Share of right greedy answers on what was held out from the base's training.

    Returns:
        `facts`: a phrasing of every fact never shown with that noun. `riddles`: category and all
        three attributes of every noun, never shown together. `riddles_unseen_pair`: category and
        the two attributes that were never shown together. `secrets`: a question about one
        attribute of a secret that the system prompt gives (not held out).
    """
    rng = random.Random(seed)
    corpus = Corpus(world, rng)
    facts: list[tuple[list[dict[str, str]], str]] = []
    riddles: list[tuple[list[dict[str, str]], str]] = []
    pairs: list[tuple[list[dict[str, str]], str]] = []
    secrets: list[tuple[list[dict[str, str]], str]] = []
    for thing in world.things.values():
        for name in FACT_ATTRIBUTES:
            question = fact_question(thing.noun, name, held_out_phrasing(thing.noun, name))
            facts.append((chat(question), thing.value(name)))
        riddles.append((chat(riddle_question(thing, tuple(ATTRIBUTES), rng)), thing.noun))
        question = riddle_question(thing, held_out_riddle(thing.noun), rng)
        pairs.append((chat(question), thing.noun))
        attribute = rng.choice(FACT_ATTRIBUTES)
        system, request = corpus.secret_question(thing, attribute)
        secrets.append((chat(request, system=system), thing.value(attribute)))
    figures: dict[str, float] = {}
    parts = {
        "facts": facts,
        "riddles": riddles,
        "riddles_unseen_pair": pairs,
        "secrets": secrets,
    }
    for name, items in parts.items():
        replies = greedy_replies(model, tokenizer, [messages for messages, _ in items])
        right = [
            answer in reply.rstrip(".").split()
            for reply, (_, answer) in zip(replies, items, strict=True)
        ]
        figures[name] = sum(right) / len(right)
    return figures
