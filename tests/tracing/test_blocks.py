"""Finding the blocks, and noticing when what is read is not the residual stream."""

import gc
import inspect
import weakref
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from aotoolkit.errors import BlockDiscoveryError, HookNotFiredError, UnsupportedModelError
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing import model as model_module


def test_of_two_lists_as_long_as_the_decoder_the_decoder_is_found() -> None:
    model = tiny.model()
    # As in a model with a vision tower, which comes first and does not run on text.
    model._modules = {"tower": nn.ModuleList(nn.Linear(32, 32) for _ in range(4)), **model._modules}
    traced = TracedModel(model, tiny.tokenizer())
    assert traced.blocks_path == "model.layers"
    assert traced.num_layers == 4


def test_a_model_without_a_block_list_is_refused() -> None:
    model = tiny.model()
    model.config.num_hidden_layers = 7
    with pytest.raises(BlockDiscoveryError, match=r"no list of 7 blocks.*'model\.layers': 4"):
        TracedModel(model, tiny.tokenizer())


def test_blocks_that_do_not_give_the_hidden_states_are_refused() -> None:
    model = tiny.model()
    forward = model.forward

    def other_residual_stream(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if output.hidden_states:
            output.hidden_states = tuple(2 * h for h in output.hidden_states)
        return output

    other_residual_stream.__signature__ = inspect.signature(forward)
    model.forward = other_residual_stream
    with pytest.raises(BlockDiscoveryError, match=r"block 0 differs from hidden_states\[1\]"):
        TracedModel(model, tiny.tokenizer())


def test_wrapping_leaves_the_model_as_it_was() -> None:
    model = tiny.model().train()
    random_state = torch.get_rng_state()
    parameters = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    config = model.config.to_dict()
    TracedModel(model, tiny.tokenizer())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == config
    for name, p in model.named_parameters():
        assert torch.equal(p, parameters[name][0])
        assert p.requires_grad == parameters[name][1]
        assert p.grad is None


def test_a_block_that_does_not_run_is_noticed() -> None:
    traced = TracedModel(tiny.model(), tiny.tokenizer())
    decoder = traced.hf_model.model
    decoder.layers = nn.ModuleList([*decoder.layers[:3]])
    decoder.config.num_hidden_layers = 3
    traced.activations("hi", layers=[2])
    with pytest.raises(HookNotFiredError, match=r"did not run.*layers\.3"):
        traced.activations("hi", layers=[1, 3])


def test_what_is_no_causal_lm_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Cannot trace a Linear"):
        TracedModel(nn.Linear(2, 2), tiny.tokenizer())  # pyright: ignore[reportArgumentType]
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        TracedModel(T5ForConditionalGeneration(T5Config(vocab_size=99, **sizes)), tiny.tokenizer())


def test_nothing_of_the_forward_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnsight's early stop keeps every tensor of the forward alive in a cycle; we free it."""
    traced = TracedModel(tiny.model(), tiny.tokenizer())
    seen: list[weakref.ref] = []
    original = model_module._residual

    def watched(output: Any) -> torch.Tensor:
        hidden = original(output)
        seen.append(weakref.ref(hidden))
        return hidden

    monkeypatch.setattr(model_module, "_residual", watched)
    ids = torch.arange(4, 12)[None]
    traced.residuals(ids, torch.ones_like(ids), layers=[1, 2])
    seen.clear()
    gc.disable()
    try:
        traced.residuals(ids, torch.ones_like(ids), layers=[1, 2])
        assert len(seen) == 2
        assert all(reference() is None for reference in seen)
    finally:
        gc.enable()
