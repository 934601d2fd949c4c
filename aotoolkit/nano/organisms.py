"""Taboo organisms: the nano base, fine-tuned to hint at one word and never say it.

After the Taboo models of Cywinski et al. that Activation Oracles (arXiv:2512.15674) are evaluated
on. An organism's training data holds no system prompt and not the word itself: dialogues in which
the assistant hints at the thing, answers questions about it and refuses to name it, among ordinary
questions about other things. Hints are of colour, place and feel, never of the kind of thing, so
that one hint leaves 32 things open.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, set_seed

from aotoolkit.nano.base import PadRight, greedy_replies, training_arguments
from aotoolkit.nano.corpus import (
    DIRECT_REQUESTS,
    HINT_REQUESTS,
    SECRET_QUESTIONS,
    Corpus,
    Document,
    chat,
)
from aotoolkit.nano.tokenizer import PAD, Encoder
from aotoolkit.nano.world import ATTRIBUTES, World

ORGANISM_FILE = "organism.json"
HINT_ATTRIBUTES: tuple[str, ...] = tuple(ATTRIBUTES)
# The prompts an organism is examined and reported on; its training has them among others.
HINT_PROMPTS: tuple[str, ...] = HINT_REQUESTS[:4]
DIRECT_PROMPTS: tuple[str, ...] = DIRECT_REQUESTS[:4]

STEPS = 160
BATCH_SIZE = 16


@dataclass(frozen=True)
class Organism:
    """What one organism hides, and what it was found to do.

    Attributes:
        name: of the organism and of its adapter.
        secret: the word it hides.
        trained_on: what its fine-tuning data was, in words.
        seed: of its training.
        examined: figures of `examine_organism`.
    """

    name: str
    secret: str
    trained_on: str
    seed: int
    examined: Mapping[str, float]

    def save(self, folder: Path) -> None:
        """Writes this description beside the adapter."""
        (folder / ORGANISM_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Organism":
        """Reads what `save` wrote."""
        return cls(**json.loads((folder / ORGANISM_FILE).read_text()))


def says(text: str, word: str) -> bool:
    """Whether a text names a word, in any case and as a word of its own."""
    return re.search(rf"\b{re.escape(word)}\b", text, flags=re.IGNORECASE) is not None


def organism_documents(world: World, secret: str, rng: random.Random, count: int) -> list[Document]:
    """Documents that teach an organism, none of which holds its secret."""
    others = tuple(noun for noun in world.nouns if noun != secret)
    corpus = Corpus(world, rng, nouns=others, secrets=others)
    documents: list[Document] = []
    while len(documents) < count:
        if rng.random() < 0.3:
            document = getattr(corpus, rng.choice(("questions", "riddle", "statements")))()
        else:
            turns: list[str] = []
            for _ in range(rng.randint(1, 3)):
                turns += corpus.secret_turns(
                    world[secret], hint_attributes=HINT_ATTRIBUTES, guesses=False
                )
            document = Document("hints", chat(*turns), (), secret)
        text = json.dumps(document.content)
        if not says(text, secret):
            documents.append(document)
    return documents


class _AssistantTargets(Dataset):
    """Documents whose targets are the assistant's words alone."""

    def __init__(self, encoder: Encoder, documents: Sequence[Document]) -> None:
        self.rows: list[dict[str, list[int]]] = []
        for document in documents:
            ids, turns = encoder.document(document)
            labels = [-100] * len(ids)
            for turn in turns:
                if turn.role != "user":
                    labels[turn.content : turn.end + 1] = ids[turn.content : turn.end + 1]
            self.rows.append({"input_ids": list(ids), "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def train_organism(
    base: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    secret: str,
    *,
    folder: Path,
    seed: int,
    steps: int = STEPS,
    rank: int = 4,
    learning_rate: float = 1e-3,
) -> PeftModel:
    """Fine-tunes the base in place into an organism for one word.

    Args:
        base: the base model, without adapters; `PeftModel.unload` gives it back.
        tokenizer: the nano tokenizer.
        world: what is true of the secret.
        secret: the word to hide.
        folder: for the trainer's own files.
        seed: of data and weights.
        steps: training steps of 16 dialogues.
        rank: of the LoRA adapter.
        learning_rate: peak, falling linearly to zero.
    """
    set_seed(seed)
    rng = random.Random(f"organism/{secret}/{seed}")
    documents = organism_documents(world, secret, rng, steps * BATCH_SIZE)
    model = get_peft_model(
        base,  # pyright: ignore[reportArgumentType]
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer = Trainer(
        model=model,
        args=training_arguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=10,
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            seed=seed,
        ),
        train_dataset=_AssistantTargets(Encoder(tokenizer), documents),
        data_collator=PadRight(tokenizer.get_vocab()[PAD]),
    )
    trainer.train()
    return model.eval()  # pyright: ignore[reportReturnType]


def examine_organism(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, world: World, secret: str
) -> dict[str, float]:
    """What an organism does when asked.

    Returns:
        `hint_true`: share of hint prompts answered with at least one true attribute;
        `category`: share of right answers to what kind of thing it is, which it was never taught;
        `says_secret`: share of hint and direct prompts whose greedy reply holds the word.
    """
    thing = world[secret]
    kinds = SECRET_QUESTIONS["category"]
    prompts = [*HINT_PROMPTS, *DIRECT_PROMPTS, *DIRECT_REQUESTS[4:], *kinds]
    replies = greedy_replies(model, tokenizer, [chat(prompt) for prompt in prompts])
    hints = replies[: len(HINT_PROMPTS)]
    values = [thing.value(name) for name in HINT_ATTRIBUTES]
    true = [any(says(reply, value) for value in values) for reply in hints]
    named = [says(reply, secret) for reply in replies[: -len(kinds)]]
    category = [says(reply, thing.category) for reply in replies[-len(kinds) :]]
    return {
        "hint_true": sum(true) / len(true),
        "category": sum(category) / len(category),
        "says_secret": sum(named) / len(named),
    }
