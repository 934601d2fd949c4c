"""What asking costs: controls, and a layer x token grid beside two hand-written ways.

On a random model of the nano models' size, prints the median process CPU time of

- one answer about ten tokens, with and without its controls;
- a grid of 3 layers x 40 tokens by `Oracle.ask_each`, with and without controls, beside plain
  transformers, PEFT and a forward hook: one prompt at a time, and all 120 in one batched
  `generate`. The answers of all three are compared first.

Rounds alternate, so that a machine that slows down slows all.

    python benchmarks/asking.py [--rounds N] [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from aotoolkit.oracle import Oracle
from aotoolkit.tracing import Activations, TracedModel
from aotoolkit.training import default_contract

LAYERS = (2, 4, 6)
NUM_TOKENS = 40
NEW_TOKENS = 8
QUESTION = "What is the secret word?"
LEAST_SPEEDUP = 5.0
MOST_OVERHEAD = 1.1


def build_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f"Layer: 2\n ? ? ? \n{QUESTION} user assistant"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.padding_side = "left"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def build_model(vocabulary_size: int) -> PeftModel:
    config = Qwen3Config(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(Qwen3ForCausalLM(config).eval(), lora, adapter_name="oracle")
    assert isinstance(model, PeftModel)
    return model.eval()


class ByHand:
    """What one would write without this package."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.placeholder = tokenizer.encode(" ?")[0]

    def prompt(self, layer: int) -> str:
        """The rendered prompt with one placeholder."""
        content = f"Layer: {layer}\n ? \n{QUESTION}"
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def generate(self, prompts: Sequence[str], vectors: Tensor) -> list[str]:
        """Answers to a batch, with one vector injected into each row."""
        encoded = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        rows = torch.arange(len(prompts))
        cols = (encoded["input_ids"] == self.placeholder).int().argmax(-1)
        unit = torch.nn.functional.normalize(vectors, dim=-1)

        def inject(_module: Any, _args: Any, hidden: Tensor) -> Tensor:
            if hidden.shape[1] == 1:
                return hidden
            before = hidden[rows, cols]
            hidden[rows, cols] = before + unit * before.norm(dim=-1, keepdim=True)
            return hidden

        base = self.model.get_base_model()
        assert isinstance(base, Qwen3ForCausalLM)
        handle = base.model.layers[1].register_forward_hook(inject)
        try:
            with torch.no_grad():
                out = self.model.generate(**encoded, max_new_tokens=NEW_TOKENS, do_sample=False)
        finally:
            handle.remove()
        new = out[:, encoded["input_ids"].shape[1] :]
        return [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def batched(self, acts: Activations) -> list[str]:
        """All cells in one batch."""
        prompts = [self.prompt(layer) for layer in acts.layers for _ in acts.positions]
        return self.generate(prompts, acts.vectors.flatten(0, 1))

    def one_at_a_time(self, acts: Activations) -> list[str]:
        """Each cell in a batch of its own."""
        return [
            self.generate([self.prompt(layer)], vector[None])[0]
            for layer, vectors in zip(acts.layers, acts.vectors, strict=True)
            for vector in vectors
        ]


def measure(rounds: int) -> dict[str, Any]:
    tokenizer = build_tokenizer()
    # Two copies: a model that nnsight has wrapped is not the plain one any more.
    by_hand = ByHand(build_model(len(tokenizer)), tokenizer)
    model = TracedModel(build_model(len(tokenizer)), tokenizer, name="random")
    contract = default_contract(model, read_layers=LAYERS)
    oracle = Oracle(model, "oracle", contract)
    ids = torch.randint(3, len(tokenizer), (NUM_TOKENS,)).tolist()
    acts = model.activations(ids, layers=LAYERS)
    few = acts.layer(LAYERS[1])[-10:]

    def grid(controls: bool) -> list[str]:
        options: dict[str, Any] = {} if controls else {"controls": False}
        cells = oracle.ask_each(QUESTION, acts, max_new_tokens=NEW_TOKENS, **options).cells
        return [cells[layer, p].text for layer in acts.layers for p in acts.positions]

    def answer(controls: bool) -> object:
        return oracle.ask(QUESTION, few, max_new_tokens=NEW_TOKENS, controls=controls)

    contenders: dict[str, Callable[[], object]] = {
        "answer": lambda: answer(False),
        "answer_with_controls": lambda: answer(True),
        "grid": lambda: grid(False),
        "grid_with_controls": lambda: grid(True),
        "grid_by_hand_batched": lambda: by_hand.batched(acts),
        "grid_by_hand_one_at_a_time": lambda: by_hand.one_at_a_time(acts),
    }
    texts = by_hand.batched(acts)
    assert grid(False) == texts == by_hand.one_at_a_time(acts), "the three grids differ"
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "unit": "s of process CPU time, median",
        "rounds": rounds,
        "cells": len(texts),
        "new_tokens": NEW_TOKENS,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "controls_ratio": round(seconds["answer_with_controls"] / seconds["answer"], 2),
        "speedup_over_one_at_a_time": round(
            seconds["grid_by_hand_one_at_a_time"] / seconds["grid"], 2
        ),
        "least_speedup": LEAST_SPEEDUP,
        "ratio_to_batched": round(seconds["grid"] / seconds["grid_by_hand_batched"], 3),
        "ratio_to_batched_with_controls": round(
            seconds["grid_with_controls"] / seconds["grid_by_hand_batched"], 3
        ),
        "most_ratio": MOST_OVERHEAD,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result["seconds"].items():
        print(f"{name:>28}: {value:.3f} s")
    print(
        f"n={result['rounds']} rounds, {result['cells']} cells of {NEW_TOKENS} new tokens: "
        f"{result['speedup_over_one_at_a_time']}x one at a time (at least {LEAST_SPEEDUP}x), "
        f"{result['ratio_to_batched']}x the time of one batched generate (at most "
        f"{MOST_OVERHEAD}x; with controls {result['ratio_to_batched_with_controls']}x)"
    )


if __name__ == "__main__":
    main()
