"""A tiny random target with two organisms, an oracle on it, and items read from it."""

import functools
from pathlib import Path
from typing import Any

import tiny
import torch
from peft import PeftModel

from aotoolkit.evals import EvalItem, ItemSpec, read_items
from aotoolkit.oracle import Oracle
from aotoolkit.tracing import TracedModel
from aotoolkit.training import default_contract

CHOICES = ("water", "word", "secret")


def target(folder: Path, architecture: str = "Qwen3") -> TracedModel:
    """A tiny model with the adapters `red` and `blue`, organisms, and `reader`, an oracle's."""
    model = TracedModel(tiny.model(architecture), tiny.tokenizer())
    for seed, name in enumerate(("red", "blue", "reader"), start=1):
        tiny.save_adapter(folder / name, architecture, seed=seed)
        model.load_adapter(name, folder / name)
    return model


def oracle(model: TracedModel) -> Oracle:
    """An oracle with random weights."""
    return Oracle(model, "reader", default_contract(model, read_layers=(1, 2)))


def spec(number: int = 0, **changes: Any) -> ItemSpec:
    """An item's spec; even numbers are of the organism `red`."""
    values: dict[str, Any] = {
        "id": f"item {number}",
        "task": "tiny",
        "unit": "red" if number % 2 == 0 else "blue",
        "adapter": "red" if number % 2 == 0 else "blue",
        "question": "What is the secret word?",
        "answers": (CHOICES[number % 2],),
        "choices": CHOICES,
        "prompt": ({"role": "user", "content": "Give me a hint." + " Give" * number},),
        "positions": slice(-3, None),
    }
    return ItemSpec(**(values | changes))


def items(model: TracedModel, count: int = 3, *, layers: Any = 2, **changes: Any) -> list[EvalItem]:
    """Items of both organisms, of different lengths."""
    return read_items(model, [spec(i, **changes) for i in range(count)], layers=layers)


def forward(model: TracedModel, ids: list[int], adapter: str | None = None) -> torch.Tensor:
    """Logits [s v] of one unpadded row, by a model of its own that transformers and PEFT load."""
    with torch.no_grad():
        made = reference(None if adapter is None else model._adapter_paths[adapter])
        return made(input_ids=torch.tensor([ids])).logits[0]


@functools.cache
def reference(folder: str | None) -> torch.nn.Module:
    """The same weights, loaded without this package."""
    base = tiny.model()
    return base if folder is None else PeftModel.from_pretrained(base, folder).eval()
