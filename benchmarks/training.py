"""What a training step costs beside the reference procedure: examples a second and peak memory.

On a random model of width 512, 8 blocks and a vocabulary of 32,000, in float32 with LoRA on every
linear layer, trains on the same mixture of prompts of 40 to 200 tokens

- through the package's own path: `BatchStream`, `ActivationCollator`, `OracleBatch.split`,
  `answer_logits`, `oracle_loss`;
- by the reference procedure, written plainly: left-padded batches in random order, each example's
  context run for itself (up to the deepest layer that is read), a Python loop over the batch in the
  hook, logits at every position.

Ours runs a batch in passes of at most 512 tokens (`TrainingConfig.tokens_per_pass`; the same
gradient), the reference whole. As in the papers' mixture each context is asked about three times,
once for each layer. Each side runs in a process of its own; sides alternate, so that a machine that
slows down slows both. Both start from the same weights, and the loss of the same batch is compared
before anything is timed.

Time is wall time, and process CPU time beside it, of whole windows of batches, the reads of
activations included; on a machine that has other work to do two threads wait for each other, and
only the CPU time of one thread (`--threads 1`) means anything. Memory is the peak of the process's
resident set, the interpreter, the libraries and the model included; `above_start` leaves out what
was there before the first step.

    python benchmarks/training.py [--rounds N] [--quick] [--json]
"""

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from aotoolkit.data import Example
from aotoolkit.oracle.prompt import OraclePrompt
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import default_contract
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.loss import answer_logits, oracle_loss
from aotoolkit.training.stream import BatchStream

VOCABULARY = 32_000
LAYERS = (2, 4, 6)
INJECT_LAYER = 1
THREADS = 2
BATCH_SIZE = 16
# A CPU is as fast on so many tokens as on more; the gradient of a batch is the same in pieces.
TOKENS_PER_PASS = 512
LEAST_SPEEDUP = 2.0
MOST_MEMORY = 0.6
SIDES = ("ours", "reference")
# A rank of 64, as published for a width of 4096, would be a quarter of all the work at this width.
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, so that prompts can be given any length."""
    markup = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = ["\n", " ", "user", "assistant", "Layer:", " ?", *(f" {layer}" for layer in LAYERS)]
    words += ["What", " is", " this?"]
    fill = [f" word{number}" for number in range(VOCABULARY - len(markup) - len(words))]
    vocabulary = {word: index for index, word in enumerate([*markup, *words, *fill])}
    level = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    level.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=level,
        pad_token=markup[0],
        eos_token=markup[2],
        additional_special_tokens=markup[1:2],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def build_model() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


def build_examples(count: int) -> list[Example]:
    """Examples whose prompts, with their answers, have 40 to 200 tokens."""
    rng = random.Random(0)
    markup = 19  # tokens of a prompt that are neither placeholders, nor filled in here
    examples: list[Example] = []
    while len(examples) < count:
        context = tuple(rng.randrange(20, VOCABULARY) for _ in range(rng.randint(40, 200)))
        length = rng.randint(40, 200) - markup
        width = rng.randint(1, min(50, len(context), length - 5))
        # Half of the papers' mixture is answered by one word, the rest by up to some fifty.
        answer = 1 if rng.random() < 0.5 else rng.randint(2, min(50, length - width - 2))
        start = rng.randrange(len(context) - width + 1)
        words = [f" word{rng.randrange(VOCABULARY - 100)}" for _ in range(length - width)]
        examples += [
            Example(
                context_ids=context,
                positions=tuple(range(start, start + width)),
                layers=(layer,),
                question="What is this?" + "".join(words[answer:]),
                answer="".join(words[:answer]).strip(),
                source="random",
            )
            for layer in LAYERS
        ]
    return examples[:count]


class Ours:
    """The package's own path."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        self.model = TracedModel(build_model(), tokenizer, name="random")
        # As the trainer does: without it the backward pass makes gradients of the base as well.
        self.model.hf_model.requires_grad_(False)
        torch.manual_seed(1)
        self.model.add_adapter("oracle", LORA)
        assert all(
            parameter.requires_grad == ("lora_" in name)
            for name, parameter in self.model.hf_model.named_parameters()
        )
        contract = default_contract(self.model, read_layers=LAYERS)
        self.collator = ActivationCollator(self.model, contract, VectorTransform())
        self.block = self.model.blocks[INJECT_LAYER]
        head = self.model.hf_model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        self.head = head

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.model.hf_model.parameters() if p.requires_grad]

    def steps(self, examples: Sequence[Example], window: int) -> Iterator[float]:
        """Runs forward and backward of one batch after the other; yields the losses."""
        stream = BatchStream(self.collator, examples, batch_size=BATCH_SIZE, seed=0, window=window)
        with self.model.using("oracle"):
            for batch in stream:
                total = 0.0
                for piece in batch.split(TOKENS_PER_PASS):
                    logits, labels = answer_logits(
                        self.model.hf_model, piece, block=self.block, head=self.head
                    )
                    loss = oracle_loss(logits, labels, piece.num_label_tokens)
                    loss.backward()
                    total += loss.item()
                yield total


class _StopEarly(Exception):
    pass


class Reference:
    """The published procedure, written plainly."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        base = build_model()
        torch.manual_seed(1)
        model = get_peft_model(base, LORA, adapter_name="oracle")
        assert isinstance(model, PeftModel)
        self.model = model
        self.blocks = base.model.layers
        # The same prompts; only their text is taken from the package.
        tiny = TracedModel(_tiny(), tokenizer, name="random")
        self.prompt: Callable[[Example], OraclePrompt] = ActivationCollator(
            tiny, default_contract(tiny, read_layers=LAYERS), VectorTransform()
        ).prompt

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def steps(self, examples: Sequence[Example], window: int) -> Iterator[float]:  # noqa: ARG002
        """Runs forward and backward of one batch after the other; yields the losses."""
        order = list(range(len(examples)))
        random.Random(0).shuffle(order)
        for start in range(0, len(order), BATCH_SIZE):
            loss = self.loss([examples[i] for i in order[start : start + BATCH_SIZE]])
            loss.backward()
            yield loss.item()

    def vectors(self, examples: Sequence[Example]) -> list[Tensor]:
        """The base's activations of each example, a row of the batch each."""
        ids, mask = _left_padded([example.context_ids for example in examples])
        layers = sorted({layer for example in examples for layer in example.layers})
        kept: dict[int, Tensor] = {}

        def keep(layer: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
            kept[layer] = output
            if layer == layers[-1]:
                raise _StopEarly

        handles = [
            self.blocks[layer].register_forward_hook(functools.partial(keep, layer))
            for layer in layers
        ]
        with (
            torch.no_grad(),
            self.model.disable_adapter(),
            contextlib.suppress(_StopEarly),
        ):
            self.model(input_ids=ids, attention_mask=mask)
        for handle in handles:
            handle.remove()
        vectors = []
        for row, example in enumerate(examples):
            pad = ids.shape[1] - len(example.context_ids)
            at = [pad + position for position in example.positions]
            vectors.append(kept[example.layers[0]][row, at])
        return vectors

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """The loss of one batch."""
        prompts = [self.prompt(example) for example in examples]
        vectors = self.vectors(examples)
        ids, mask = _left_padded([prompt.token_ids for prompt in prompts])
        labels = torch.full_like(ids, -100)
        places = []
        for row, prompt in enumerate(prompts):
            pad = ids.shape[1] - len(prompt.token_ids)
            labels[row, pad:] = torch.tensor(prompt.labels)
            places.append([pad + position for position in prompt.placeholder_positions])

        def inject(_module: Any, _args: Any, hidden: Tensor) -> Tensor:
            for row, (at, own) in enumerate(zip(places, vectors, strict=True)):
                before = hidden[row, at]
                unit = nn.functional.normalize(own, dim=-1)
                norm = before.detach().norm(dim=-1, keepdim=True)
                hidden[row, at] = before + norm * unit
            return hidden

        handle = self.blocks[INJECT_LAYER].register_forward_hook(inject)
        loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        handle.remove()
        return loss


def _tiny() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=8,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=1024,
        )
    ).eval()


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = [[0] * (length - len(row)) + list(row) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_side(name: str, steps: int, threads: int) -> dict[str, float]:
    """Trains one side in this process."""
    torch.set_num_threads(threads)
    side = Ours() if name == "ours" else Reference()
    examples = build_examples(steps * BATCH_SIZE)
    start_bytes = peak_bytes()
    optimizer = torch.optim.AdamW(side.parameters, lr=1e-5)
    # One batch before the clock starts, the same on both sides: its loss is compared.
    first = next(side.steps(examples[:BATCH_SIZE], 1))
    optimizer.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    steps_of_side = side.steps(examples, steps)
    for _ in range(steps):
        next(steps_of_side)
        nn.utils.clip_grad_norm_(side.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "first_loss": first,
        "examples": len(examples),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "peak_bytes": peak_bytes(),
        "start_bytes": start_bytes,
    }


def measure(steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Runs both sides, each in processes of its own, and compares them."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--steps", str(steps)]
            output = subprocess.run(
                [*command, "--threads", str(threads)],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            ).stdout
            runs[side].append(json.loads(output.splitlines()[-1]))
    first = {side: runs[side][0]["first_loss"] for side in SIDES}
    assert abs(first["ours"] - first["reference"]) < 1e-3, f"the losses differ: {first}"

    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[side])

    def ratio(key: str) -> float:
        """Of the reference to ours, paired within each round."""
        pairs = zip(runs["reference"], runs["ours"], strict=True)
        return statistics.median(theirs[key] / ours[key] for theirs, ours in pairs)

    sides = {
        side: {
            "examples_per_second": round(
                median(side, "examples") / median(side, "wall_seconds"), 3
            ),
            "examples_per_cpu_second": round(
                median(side, "examples") / median(side, "cpu_seconds"), 3
            ),
            "peak_bytes": int(median(side, "peak_bytes")),
            "above_start_bytes": int(median(side, "peak_bytes") - median(side, "start_bytes")),
        }
        for side in SIDES
    }
    above = {side: sides[side]["above_start_bytes"] for side in SIDES}
    return {
        "speed_ratio": round(ratio("wall_seconds"), 2),
        "cpu_speed_ratio": round(ratio("cpu_seconds"), 2),
        "memory_ratio": round(1 / ratio("peak_bytes"), 3),
        "memory_ratio_above_start": round(above["ours"] / above["reference"], 3),
        "least_speed_ratio": LEAST_SPEEDUP,
        "most_memory_ratio": MOST_MEMORY,
        "first_loss": first,
        "batch_size": BATCH_SIZE,
        "tokens_per_pass": TOKENS_PER_PASS,
        "lora_rank": LORA.r,
        "steps": steps,
        "rounds": rounds,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "sides": sides,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="batches a round, one window of ours")
    parser.add_argument("--threads", type=int, default=THREADS, help="1 on a busy machine")
    parser.add_argument("--quick", action="store_true", help="3 steps, one round: under 60 s")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments.side, arguments.steps, arguments.threads)))
        return
    steps, rounds = (3, 1) if arguments.quick else (arguments.steps, arguments.rounds)
    result = measure(steps, rounds, arguments.threads)
    if arguments.json:
        print(json.dumps(result))
        return
    for side, row in result["sides"].items():
        print(
            f"{side:>10}: {row['examples_per_second']:.2f} examples/s, "
            f"{row['examples_per_cpu_second']:.2f} a CPU second, peak "
            f"{row['peak_bytes'] / 2**20:.0f} MiB ({row['above_start_bytes'] / 2**20:.0f} above "
            "the start)"
        )
    print(
        f"n={rounds} rounds of {steps} batches of {BATCH_SIZE}: {result['speed_ratio']}x the "
        f"examples/s (by CPU time {result['cpu_speed_ratio']}x; at least {LEAST_SPEEDUP}x), "
        f"{result['memory_ratio']}x the memory (above the start "
        f"{result['memory_ratio_above_start']}x; at most {MOST_MEMORY}x)"
    )


if __name__ == "__main__":
    main()
