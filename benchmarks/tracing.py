"""What reading through nnsight costs beside a plain forward hook that stops early.

Prints, for a tiny and a moderate model, the median process CPU time of one read of three layers
by `TracedModel.residuals` and by forward hooks of our own, and their ratio. Rounds alternate, so
that a machine that slows down slows both.

    python benchmarks/tracing.py [--rounds N] [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from aotoolkit.tracing import TracedModel

SHAPES = {
    # name: (width, blocks, batch, sequence, default rounds, the most the ratio may be)
    "tiny": (64, 4, 4, 32, 300, 1.25),
    "moderate": (512, 8, 16, 64, 15, 1.03),
}


class _StopEarly(Exception):
    pass


def hooked_read(
    model: nn.Module, blocks: list[nn.Module], layers: list[int]
) -> Callable[..., Tensor]:
    """The plain way: hooks that keep the outputs, the last of which ends the forward."""

    @torch.no_grad()
    def read(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            kept.append(output)
            if len(kept) == len(layers):
                raise _StopEarly

        handles = [blocks[layer].register_forward_hook(hook) for layer in layers]
        try:
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            )
        except _StopEarly:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(kept)

    return read


def measure(name: str, rounds: int | None) -> dict[str, float | int | str]:
    width, num_layers, batch, length, default_rounds, limit = SHAPES[name]
    rounds = rounds or default_rounds
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    layers = [num_layers // 4, num_layers // 2, 3 * num_layers // 4]
    ids = torch.randint(0, 1000, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, : length // 4] = 0

    # A copy for the hooks: a model that nnsight has wrapped is not the plain one any more.
    plain = Qwen3ForCausalLM(config).eval()
    plain.load_state_dict(model.state_dict())
    baseline = hooked_read(plain, list(plain.model.layers), layers)
    unused = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    traced = TracedModel(model, unused)

    def ours(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return traced.residuals(input_ids, attention_mask, layers=layers)

    assert torch.equal(ours(ids, mask), baseline(ids, mask)), "the two reads differ"
    times: dict[str, list[float]] = {"hook": [], "traced": []}
    contenders = [("hook", baseline), ("traced", ours)]
    for round_number in range(rounds + 3):
        for label, read in contenders[:: 1 if round_number % 2 else -1]:
            start = time.process_time()
            read(ids, mask)
            elapsed = time.process_time() - start
            if round_number >= 3:  # warmed up
                times[label].append(elapsed)
    medians = {label: statistics.median(values) * 1000 for label, values in times.items()}
    return {
        "model": name,
        "width": width,
        "blocks": num_layers,
        "batch": batch,
        "tokens": length,
        "rounds": rounds,
        "hook_ms": round(medians["hook"], 3),
        "traced_ms": round(medians["traced"], 3),
        "ratio": round(medians["traced"] / medians["hook"], 3),
        "limit": limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, help="default: 300 (tiny), 15 (moderate)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(name, arguments.rounds) for name in SHAPES]
    if arguments.json:
        print(json.dumps({"unit": "ms of process CPU time, median", "results": results}))
        return
    for r in results:
        print(
            f"{r['model']:>9} (width {r['width']}, {r['blocks']} blocks, {r['batch']}x{r['tokens']}"
            f" tokens, n={r['rounds']} rounds): hook {r['hook_ms']} ms, traced {r['traced_ms']} ms,"
            f" ratio {r['ratio']} (limit {r['limit']})"
        )


if __name__ == "__main__":
    main()
