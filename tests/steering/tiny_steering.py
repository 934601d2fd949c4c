"""A tiny random target with an oracle on the same base, which the steering tests share."""

import tiny
import torch
from peft import LoraConfig

from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.steering.behaviour import Behaviour
from aotoolkit.steering.objective import OracleObjective
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.lora_targets import lora_targets

PAIRS = (("What is the secret word?", "water"), ("What colour is it?", "blue"))
PROMPTS = [
    [{"role": "user", "content": "Give me a hint."}],
    [{"role": "user", "content": "My name is Anna and I live in Paris."}],
]

DIALECTS = {
    "activation_oracle": {
        "dialect": "activation_oracle",
        "prefix_template": "Layer: {layer}\n{placeholders} \n",
        "inject_layer": 1,
        "formula": "add_norm_matched",
        "position_ids": "from_mask",
    },
    "latentqa": {
        "dialect": "latentqa",
        "prefix_template": "{placeholders}",
        "inject_layer": 0,
        "formula": "replace",
        "position_ids": "shifted",
    },
}


def contract(tokenizer, *, dialect="activation_oracle", **changes):
    fields = {
        "base_model": "tiny",
        "placeholder": " ?",
        "read_layers": (1, 2),
        "layers_per_prompt": "one",
        "coefficient": 1.0,
        "transform": "none",
    }
    return describe_tokenizer(OracleContract(**(fields | DIALECTS[dialect] | changes)), tokenizer)


def target_and_oracle(architecture="Qwen3", *, dtype=torch.float32, seed=0, **changes):
    """A base of four blocks, and a random oracle's adapter on it."""
    hf_model = tiny.model(architecture, num_layers=4, width=32, seed=seed).to(dtype)
    model = TracedModel(hf_model, tiny.tokenizer())
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=list(lora_targets(model, experts=False).modules)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        model.add_adapter("oracle", config)
        for name, parameter in model.hf_model.named_parameters():
            if ".oracle." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model, Oracle(model, "oracle", contract(model.tokenizer, **changes))


def weights(model):
    """A copy of all weights that are there now."""
    return {name: weight.detach().clone() for name, weight in model.hf_model.named_parameters()}


def objective_of(
    model, oracle, *, method="single_layer", layers=(2,), checkpointed=False, window=4
):
    """What `steer` minimises, for an adapter `steered`."""
    made = OracleObjective(
        model,
        oracle,
        Behaviour.of(PAIRS),
        PROMPTS,
        method=method,
        layers=layers,
        window=window,
        batch_size=4,
        gradient_checkpointing=checkpointed,
        tokens_per_pass=150,
        seed=0,
    )
    made.adapter = "steered"
    return made
