"""What an oracle's LoRA adapts on each architecture, against lists written by hand."""

import pytest
import tiny
import torch
import transformers

from aotoolkit.errors import LoraTargetError
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.lora_targets import (
    LoraTargets,
    adapted_weights,
    check_adapted,
    lora_targets,
)
from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.lora import lora_config

ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
EXPERTS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
# architecture -> path of the blocks, linear layers of one, fused experts of one
EXPECTED = {
    "Qwen3": ("model.layers", ATTENTION | MLP, set()),
    "Qwen2": ("model.layers", ATTENTION | MLP, set()),
    "Llama": ("model.layers", ATTENTION | MLP, set()),
    "Mistral": ("model.layers", ATTENTION | MLP, set()),
    "Gemma2": ("model.layers", ATTENTION | MLP, set()),
    "Gemma3Text": ("model.layers", ATTENTION | MLP, set()),
    "Olmo2": ("model.layers", ATTENTION | MLP, set()),
    "Phi3": (
        "model.layers",
        {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
        set(),
    ),
    "GPT2": ("transformer.h", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}, set()),
    "GPTNeoX": (
        "gpt_neox.layers",
        {
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        },
        set(),
    ),
    "Qwen3Moe": ("model.layers", ATTENTION, EXPERTS),
    "Mixtral": ("model.layers", ATTENTION, EXPERTS),
}


def traced(architecture="Qwen3", **options):
    return TracedModel(tiny.model(architecture, num_layers=2, **options), tiny.tokenizer())


def names(path, found):
    return {f"{path}.{layer}.{name}" for layer in range(2) for name in found}


def config(tmp_path, **options):
    return TrainingConfig(output_dir=tmp_path, lora_rank=2, lora_alpha=4, **options)


def gradients(model):
    """Names of the weights that a loss of the model's logits sends a gradient to."""
    for parameter in model.hf_model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.hf_model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 11)[None]
    with model.using("oracle"):
        model.hf_model(input_ids=ids).logits.square().mean().backward()
    return {
        name
        for name, parameter in model.hf_model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_linear_layers_of_the_blocks_and_nothing_else(architecture, tmp_path):
    model = traced(architecture)
    path, linear, experts = EXPECTED[architecture]
    targets = lora_targets(model)
    assert set(targets.modules) == names(path, linear)
    assert set(targets.parameters) == names(path, experts)
    digest = model.base_digest
    model.add_adapter("oracle", lora_config(model, config(tmp_path)))
    check_adapted(model, "oracle", targets)
    assert model.base_digest == digest
    trained = gradients(model)
    assert trained, "no gradient reaches the adapter"
    adapted = {name.split(".lora_")[0].replace(".base_layer", "") for name in trained}
    assert adapted == names(path, linear | ({"mlp.experts"} if experts else set()))
    assert model.base_digest == digest


@pytest.mark.parametrize("architecture", ["Qwen3Moe", "Mixtral"])
def test_an_adapter_on_experts_switches_off(architecture, tmp_path):
    model = traced(architecture)
    ids, mask = torch.arange(3, 11)[None], torch.ones(1, 8, dtype=torch.long)
    before = model.residuals(ids, mask, layers=[1], adapter=None)
    model.add_adapter("oracle", lora_config(model, config(tmp_path)))
    gradients(model)
    torch.testing.assert_close(model.residuals(ids, mask, layers=[1], adapter=None), before)
    changed = model.residuals(ids, mask, layers=[1], adapter="oracle")
    assert not torch.allclose(changed, before, atol=1e-3)


def test_experts_routers_and_head_are_a_choice(tmp_path):
    model = traced("Qwen3Moe")
    without = lora_targets(model, experts=False)
    assert without.parameters == ()
    assert set(without.modules) == names("model.layers", ATTENTION)
    routed = lora_targets(model, experts=False, routers=True)
    assert set(routed.parameters) == names("model.layers", {"mlp.gate.weight"})
    headed = lora_targets(model, head=True)
    assert set(headed.modules) == names("model.layers", ATTENTION) | {"lm_head"}
    model.add_adapter("oracle", lora_config(model, config(tmp_path, lora_head=True)))
    check_adapted(model, "oracle", headed)


def test_dropout_on_fused_experts_is_refused(tmp_path):
    model = traced("Qwen3Moe")
    with pytest.raises(LoraTargetError, match="lora_experts=False"):
        lora_config(model, config(tmp_path, lora_dropout=0.1))
    lora_config(model, config(tmp_path, lora_dropout=0.1, lora_experts=False))


def test_routers_of_a_model_without_experts_are_refused():
    with pytest.raises(LoraTargetError, match="has no routers"):
        lora_targets(traced(), routers=True)


def test_an_adapter_that_went_elsewhere_is_seen(tmp_path):
    model = traced()
    model.add_adapter("oracle", lora_config(model, config(tmp_path)))
    other = LoraTargets(("model.layers.0.mlp.up_proj", "model.norm"), ())
    with pytest.raises(LoraTargetError, match=r"1 weights are missing \(model.norm\), 13 too many"):
        check_adapted(model, "oracle", other)
    assert len(adapted_weights(model, "oracle").modules) == 14


def test_a_vision_tower_is_left_alone(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    configuration = transformers.Gemma3Config(
        text_config=tiny.config("Gemma3Text", num_layers=2).to_dict(),
        # As deep as the decoder, so that only what runs on text tells them apart.
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    hf_model = transformers.Gemma3ForConditionalGeneration(configuration).eval()
    vision = [name for name, _ in hf_model.named_modules() if "vision" in name]
    assert vision
    model = TracedModel(hf_model, tiny.tokenizer())
    targets = lora_targets(model)
    assert set(targets.modules) == names("model.language_model.layers", ATTENTION | MLP)
    model.add_adapter("oracle", lora_config(model, config(tmp_path)))
    check_adapted(model, "oracle", targets)
