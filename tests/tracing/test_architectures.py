"""Every architecture, against plain forward hooks and transformers' own hidden states."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from torch import Tensor, nn

from aotoolkit.tracing import TracedModel

PROMPTS = ["Give me a hint.", "What is the secret word? It is blue, and it is water.", "My name"]
LAYERS = (0, 2, 3)


def hooked(model: nn.Module, blocks: list[nn.Module], token_ids: list[int]) -> Tensor:
    """[l s d] by plain forward hooks, one prompt without padding: the independent implementation.

    Runs whatever adapters are live in `model`.
    """
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in LAYERS]
    with torch.no_grad():
        model(torch.tensor([token_ids]))
    for handle in handles:
        handle.remove()
    return torch.stack([seen[layer][0] for layer in LAYERS])


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_padded_batch_is_what_plain_hooks_read_one_at_a_time(
    architecture: str, adapter: str | None, adapter_folder: Callable[..., Path]
) -> None:
    traced = TracedModel(tiny.model(architecture), tiny.tokenizer())
    traced.load_adapter("a", adapter_folder(architecture))
    batch = traced.activations(PROMPTS, layers=LAYERS, adapter=adapter)

    reference = tiny.model(architecture)
    blocks = [reference.get_submodule(f"{traced.blocks_path}.{i}") for i in range(4)]
    if adapter:
        # PEFT's own way to load, not ours.
        reference = PeftModel.from_pretrained(reference, str(adapter_folder(architecture))).eval()
    for prompt, acts in zip(PROMPTS, batch, strict=True):
        alone = traced.activations(prompt, layers=LAYERS, adapter=adapter)
        expected = hooked(reference, blocks, list(acts.context_ids))
        assert acts.vectors.shape == (3, len(acts.context_ids), 32)
        torch.testing.assert_close(alone.vectors, expected, rtol=0, atol=0)
        scale = expected.abs().max().item()
        torch.testing.assert_close(acts.vectors, alone.vectors, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_layer_l_is_hidden_states_l_plus_1(architecture: str) -> None:
    model = tiny.model(architecture)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    traced = TracedModel(model, tiny.tokenizer())
    read = traced.residuals(ids, torch.ones_like(ids), layers=[0, 1, 2])
    torch.testing.assert_close(read, torch.stack(expected[1:4]), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_adapter_changes_the_read_and_the_base_stays_the_base(
    architecture: str, adapter_folder: Callable[..., Path]
) -> None:
    traced = TracedModel(tiny.model(architecture), tiny.tokenizer())
    before = traced.activations(PROMPTS[0], layers=[2])
    traced.load_adapter("a", adapter_folder(architecture))
    adapted = traced.activations(PROMPTS[0], layers=[2], adapter="a")
    after = traced.activations(PROMPTS[0], layers=[2])
    torch.testing.assert_close(after.vectors, before.vectors, rtol=0, atol=0)
    assert (adapted.vectors - before.vectors).abs().max() > 0.01
    assert after.provenance.base_digest == before.provenance.base_digest


@pytest.mark.parametrize("architecture", ["Qwen3", "GPT2", "Gemma3Text"])
def test_right_padding_gives_the_same(architecture: str) -> None:
    traced = TracedModel(tiny.model(architecture), tiny.tokenizer())
    ids = torch.arange(3, 13)[None]
    alone = traced.residuals(ids, torch.ones_like(ids), layers=[1])
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 4, dtype=torch.long)], 1)
    read = traced.residuals(padded, mask, layers=[1])[:, :, :10]
    torch.testing.assert_close(read, alone, rtol=1e-5, atol=1e-5)


def test_generation_is_transformers_own(adapter_folder: Callable[..., Path]) -> None:
    for architecture in tiny.ARCHITECTURES:
        traced = TracedModel(tiny.model(architecture), tiny.tokenizer())
        reference = tiny.model(architecture)
        ids = torch.tensor([traced.encode(PROMPTS[1]).token_ids])
        with torch.no_grad():
            expected = reference.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        mask = torch.ones_like(ids)
        new = traced.generate_ids(ids, mask, max_new_tokens=8, do_sample=False)
        assert torch.equal(new, expected[:, ids.shape[1] :]), architecture


def test_a_padded_batch_of_replies_is_one_reply_at_a_time(model: TracedModel) -> None:
    together = model.generate(PROMPTS, adapter="a", max_new_tokens=8)
    assert together == [model.generate(p, adapter="a", max_new_tokens=8) for p in PROMPTS]
    assert together != model.generate(PROMPTS, max_new_tokens=8)
