"""Tiny models with adapters, wrapped."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from aotoolkit.tracing import TracedModel


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(architecture, seed) -> a saved LoRA adapter, made once."""
    made: dict[tuple[str, int], Path] = {}

    def get(architecture: str = "Qwen3", seed: int = 1) -> Path:
        if (architecture, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{seed}")
            made[architecture, seed] = tiny.save_adapter(folder, architecture, seed=seed)
        return made[architecture, seed]

    return get


@pytest.fixture
def model(adapter_folder: Callable[..., Path]) -> TracedModel:
    """A fresh Qwen3 of 4 blocks with the adapters 'a' and 'b'."""
    traced = TracedModel(tiny.model(), tiny.tokenizer(), name="tiny")
    traced.load_adapter("a", adapter_folder(seed=1))
    traced.load_adapter("b", adapter_folder(seed=2))
    return traced
