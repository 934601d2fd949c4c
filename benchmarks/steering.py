"""Steering: time of a step, and peak memory of one base for target and oracle against two.

    python benchmarks/steering.py [--width 512] [--no-checkpointing]
    python benchmarks/steering.py --one | --two      # what is run in a process of its own

The published code (LatentQA) holds two copies of the base, one for the target and one for the
decoder. Here both are adapters on one. Each way runs in a process of its own, on random weights;
"memory" is what the process grew by from before the first weight was made. What a batch keeps for
the backward pass is the same in both, so that the ratio falls with the size of the base, and with
gradient checkpointing.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from peft import LoraConfig
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny  # pyright: ignore[reportMissingImports]

from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.steering.behaviour import Behaviour
from aotoolkit.steering.objective import OracleObjective
from aotoolkit.steering.steering import new_adapter, only_trained
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.lora_targets import lora_targets

PAIRS = (("What is the secret word?", "water"), ("What colour is it?", "blue"))
PROMPTS = [[{"role": "user", "content": text}] for text in ("Give me a hint.", "I live in Paris.")]


def base(args: argparse.Namespace) -> TracedModel:
    """A random model."""
    hf_model = tiny.model(
        num_layers=args.layers,
        width=args.width,
        head_dim=args.width // 4,
        vocab_size=args.vocabulary,
    )
    return TracedModel(hf_model, tiny.tokenizer())


def measure(args: argparse.Namespace, *, copies: int) -> dict[str, float]:
    """Median time of a step and the memory that the process grew by."""
    torch.set_num_threads(args.threads)
    start = psutil.Process().memory_info().rss
    target = base(args)
    reader = target if copies == 1 else base(args)
    reader.add_adapter("oracle", LoraConfig(r=8, target_modules=list(lora_targets(reader).modules)))
    middle = args.layers // 2
    contract = describe_tokenizer(
        OracleContract(
            base_model="random",
            dialect="latentqa",
            prefix_template="{placeholders}",
            placeholder=" ?",
            read_layers=(middle,),
            layers_per_prompt="one",
            inject_layer=0,
            formula="replace",
            coefficient=1.0,
            transform="none",
            position_ids="shifted",
        ),
        target.tokenizer,
    )
    objective = OracleObjective(
        target,
        Oracle(reader, "oracle", contract),
        Behaviour.of(PAIRS),
        PROMPTS,
        method="single_layer",
        layers=(middle,),
        window="all",
        batch_size=args.batch_size,
        gradient_checkpointing=args.checkpointing,
        tokens_per_pass=4096,
        seed=0,
    )
    seconds = []
    with new_adapter(target, "steered", num_blocks=middle + 1, rank=8, alpha=8, seed=0) as trained:
        objective.adapter = "steered"
        optimiser = torch.optim.Adam(trained, lr=1e-4)
        with only_trained({target, reader}, trained):
            for step in tqdm(range(args.steps), leave=False):
                begin = time.perf_counter()
                optimiser.zero_grad()
                objective.step(step)
                optimiser.step()
                seconds.append(time.perf_counter() - begin)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        peak //= 1024
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak - start}


def main() -> None:
    """Runs both ways and prints them."""
    parser = argparse.ArgumentParser(description="Steering: step time and memory.")
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, default=True, help="of gradients"
    )
    parser.add_argument("--one", action="store_true", help="one base for both, in this process")
    parser.add_argument("--two", action="store_true", help="two copies, in this process")
    args = parser.parse_args()
    if args.one or args.two:
        print(json.dumps(measure(args, copies=1 if args.one else 2)))
        return
    found = {}
    for way in ("--one", "--two"):
        command = [sys.executable, __file__, way, *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    one, two = found["--one"], found["--two"]
    print(f"one base shared: {one['seconds']:.3f} s a step, {one['bytes'] / 2**20:.0f} MiB")
    print(f"two copies:      {two['seconds']:.3f} s a step, {two['bytes'] / 2**20:.0f} MiB")
    print(f"memory of one base against two: {one['bytes'] / two['bytes']:.2f}x")


if __name__ == "__main__":
    main()
