"""TransformerLens: a bridge as the target, and its caches."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoTokenizer

from aotoolkit.errors import (
    IncompatibleActivationsError,
    LayerError,
    UnsupportedModelError,
)
from aotoolkit.tracing import Activations, TracedModel

bridge_module = pytest.importorskip("transformer_lens.model_bridge")

PROMPT = "What is the secret word?"


@pytest.fixture
def bridge(tmp_path: Path) -> Any:
    # TransformerLens needs the architecture's name and a tokenizer from a folder.
    hf_model = tiny.model()
    hf_model.config.architectures = [type(hf_model).__name__]
    tiny.tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    return bridge_module.TransformerBridge.boot_transformers(
        "Qwen/Qwen3-0.6B", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )


def test_a_bridge_reads_its_hook_resid_post(bridge: Any) -> None:
    traced = TracedModel(bridge, tiny.tokenizer(), name="bridge")
    ids = torch.tensor([traced.encode(PROMPT).token_ids])
    _, cache = bridge.run_with_cache(ids)
    acts = traced.activations(PROMPT, layers=[0, 2, 3])
    for place, layer in enumerate(acts.layers):
        theirs = cache[f"blocks.{layer}.hook_resid_post"][0]
        torch.testing.assert_close(acts.vectors[place], theirs, rtol=1e-5, atol=1e-5)

    plain = TracedModel(tiny.model(attn_implementation="eager"), tiny.tokenizer())
    expected = plain.activations(PROMPT, layers=[0, 2, 3])
    torch.testing.assert_close(acts.vectors, expected.vectors, rtol=1e-4, atol=1e-4)

    from_cache = Activations.from_cache(
        cache, ids[0].tolist(), model=traced, layers=[0, 2, 3], positions=[-1, 2]
    )
    whole = acts.at([-1, 2])
    torch.testing.assert_close(from_cache.vectors, whole.vectors, rtol=1e-5, atol=1e-5)
    assert from_cache.token_ids == whole.token_ids
    assert from_cache.tokens == whole.tokens
    assert from_cache.provenance.source == "transformer_lens cache"
    assert Activations.from_cache(cache, PROMPT, model=traced).layers == (0, 1, 2, 3)


def test_compatibility_mode_is_refused_with_the_reason(bridge: Any) -> None:
    traced = TracedModel(bridge, tiny.tokenizer())
    ids = torch.tensor([[5, 6, 7]])
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(UnsupportedModelError, match="centres the residual stream"):
        TracedModel(bridge, tiny.tokenizer())
    _, cache = bridge.run_with_cache(ids)
    with pytest.raises(UnsupportedModelError, match="compatibility mode"):
        Activations.from_cache(cache, [5, 6, 7], model=traced)


def test_a_bridge_switched_to_compatibility_mode_later_is_refused(bridge: Any) -> None:
    traced = TracedModel(bridge, tiny.tokenizer())
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(UnsupportedModelError, match="compatibility mode"):
        traced.activations(PROMPT, layers=[1])


def test_a_bridge_takes_no_adapters(bridge: Any, tmp_path: Path) -> None:
    traced = TracedModel(bridge, tiny.tokenizer())
    with pytest.raises(UnsupportedModelError, match="PEFT cannot add adapters"):
        traced.load_adapter("a", tmp_path)


def test_caches_that_do_not_fit() -> None:
    traced = TracedModel(tiny.model(), tiny.tokenizer())
    cache = {"blocks.1.hook_resid_post": torch.randn(1, 3, 32)}
    assert Activations.from_cache(cache, [5, 6, 7], model=traced).layers == (1,)
    assert len(Activations.from_cache({k: v[0] for k, v in cache.items()}, [5, 6, 7], model=traced))
    with pytest.raises(IncompatibleActivationsError, match="beginning-of-sequence"):
        Activations.from_cache(cache, [5, 6], model=traced)
    with pytest.raises(LayerError, match="names_filter"):
        Activations.from_cache(cache, [5, 6, 7], model=traced, layers=[2])
    with pytest.raises(LayerError, match="names_filter"):
        Activations.from_cache({}, [5, 6, 7], model=traced)
