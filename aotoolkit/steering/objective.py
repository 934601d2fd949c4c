"""What steering minimises: how unlikely an oracle finds the wanted answers about a target.

An oracle can be satisfied by a change that only this oracle, at exactly these vectors, takes for
the behaviour, while the target goes on as before. Two cures: the vectors that it is told are moved
at random in each step (`noise`), and several oracles take turns, so that what convinces
one has to convince the others too.
"""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aotoolkit.errors import ContextLengthError, PositionError, SteeringError
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.contract import Window, is_window
from aotoolkit.steering.behaviour import Behaviour, QuestionAnswer
from aotoolkit.steering.oracle_loss import OracleItem, OracleLoss
from aotoolkit.steering.result import Method
from aotoolkit.steering.target import differentiable_residuals, right_padded
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Prompt, ends_with_reply

# Pairs of prompt and question that the curve is measured on.
_EVALUATED = 64


@dataclass(frozen=True)
class _Read:
    """A prompt of the target and which places of it the oracle is told."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]


class OracleObjective:
    """The loss of a behaviour on a target, and its gradient in what is trained.

    Args:
        model: the target.
        oracle: the oracle.
        behaviour: what is wanted.
        prompts: what the target reads.
        method: where gradients go.
        layers: what is read.
        window: which tokens.
        batch_size: pairs of prompt and question in a step.
        gradient_checkpointing: blocks run again in the backward pass.
        tokens_per_pass: of the oracle's prompts.
        seed: of what each step draws.
        noise: length of the random offset that each step adds to each vector before the oracle is
            told, as a share of the vector's own; in the curve offsets are the same at each point.
    """

    def __init__(
        self,
        model: TracedModel,
        oracle: Oracle,
        behaviour: Behaviour,
        prompts: Sequence[Prompt],
        *,
        method: Method,
        layers: tuple[int, ...],
        window: Window | None,
        batch_size: int,
        gradient_checkpointing: bool,
        tokens_per_pass: int,
        seed: int,
        noise: float = 0.0,
    ) -> None:
        if batch_size < 1:
            raise SteeringError(f"batch_size is {batch_size}; it must be 1 or more.")
        if not (math.isfinite(noise) and noise >= 0):
            raise SteeringError(
                f"noise is {noise}; give 0 for none, or a share of the vectors' length such as 0.5."
            )
        self.model = model
        self.behaviour = behaviour
        self.method = method
        self.layers = layers
        self.batch_size = batch_size
        self.checkpointed = gradient_checkpointing
        self.seed = seed
        self.noise = noise
        self.adapter: str | None = None
        self.added: Mapping[int, Tensor] = {}
        self.loss = OracleLoss(
            oracle, checkpointed=gradient_checkpointing, tokens_per_pass=tokens_per_pass
        )
        self.loss.check_layers(layers)
        several = oracle.contract.layers_per_prompt == "several" and method != "layerwise"
        # Layers that stand in one prompt of the oracle.
        self.groups = (layers,) if several else tuple((layer,) for layer in layers)
        recommended = oracle.contract.recommended.for_layers(self.groups[0]).window
        self.window: Window = window or recommended or "all"
        self.reads = [self._read(prompt) for prompt in prompts]
        self._items: dict[tuple[int, QuestionAnswer, tuple[int, ...]], OracleItem] = {}
        # Each pair with each prompt is rendered once here, so that what is refused is so at once.
        everything = [
            (prompt, pair) for prompt in range(len(self.reads)) for pair in behaviour.pairs
        ]
        for prompt, pair in everything:
            for group in self.groups:
                self._item(prompt, pair, group)
        drawn = random.Random(f"{seed}/evaluated")
        drawn.shuffle(everything)
        self.evaluated = everything[:_EVALUATED]

    def identity(self) -> dict[str, Any]:
        """What decides the steps, for a state that is gone on from."""
        oracle = self.loss.oracle
        read = json.dumps([[r.token_ids, r.positions] for r in self.reads])
        return {
            "base": self.model.base_digest,
            "oracle": None
            if oracle.adapter is None
            else oracle.model.adapter_digest(oracle.adapter),
            "contract": oracle.contract.digest,
            "pairs": [[pair.question, pair.answer] for pair in self.behaviour.pairs],
            "prompts": hashlib.sha256(read.encode()).hexdigest(),
            "method": self.method,
            "layers": list(self.layers),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "noise": self.noise,
        }

    def step(self, number: int) -> float:
        """The loss of what a step draws; its gradient goes into what is trained."""
        return self.backward(self.drawn(number), offsets=str(number))

    def drawn(self, number: int) -> list[tuple[int, QuestionAnswer]]:
        """Prompts and pairs of a step: each prompt comes once before one comes again."""
        rng = random.Random(f"{self.seed}/{number}")
        prompts: list[int] = []
        while len(prompts) < self.batch_size:
            prompts += rng.sample(range(len(self.reads)), len(self.reads))
        return [(prompt, rng.choice(self.behaviour.pairs)) for prompt in prompts[: self.batch_size]]

    def backward(
        self, chosen: Sequence[tuple[int, QuestionAnswer]], *, offsets: str | None = None
    ) -> float:
        """Loss of prompts and pairs, with the gradient added to what is trained.

        Args:
            chosen: prompts and pairs.
            offsets: seeds the random offsets; without it the vectors are told as they are.
        """
        with self.model.lock:
            reads, items = self._forward(chosen, gradients=True)
            told = reads if offsets is None else self._moved(reads, offsets)
            loss, found = self.loss(told, items)
            # The blocks may run again now, with the adapter that they ran with before.
            with self.model.inference(self.adapter), torch.enable_grad():
                layers = list(reads)
                torch.autograd.backward(
                    [reads[layer] for layer in layers], [found[layer] for layer in layers]
                )
        return loss

    def evaluate(self) -> float:
        """Loss over the same prompts, pairs and offsets at each call."""
        count, total = 0, 0.0
        for start in range(0, len(self.evaluated), self.batch_size):
            chosen = self.evaluated[start : start + self.batch_size]
            with self.model.lock:
                reads, items = self._forward(chosen, gradients=False)
                # Without offsets the curve would be lowest where the oracle alone is convinced.
                told = self._moved(reads, f"evaluated {start}")
                loss, _ = self.loss(told, items, gradients=False)
            tokens = sum(item.num_label_tokens for item in items)
            total += loss * tokens
            count += tokens
        return total / count

    def _forward(
        self, chosen: Sequence[tuple[int, QuestionAnswer]], *, gradients: bool
    ) -> tuple[dict[int, Tensor], list[OracleItem]]:
        rows = sorted({prompt for prompt, _ in chosen})
        ids = right_padded(self.model, [self.reads[prompt].token_ids for prompt in rows])
        reads = differentiable_residuals(
            self.model,
            ids,
            layers=self.layers,
            adapter=self.adapter,
            added=self.added,
            cut=self.method == "layerwise",
            checkpointed=self.checkpointed and gradients,
            gradients=gradients,
        )
        items = [
            self._item(prompt, pair, group).at(rows.index(prompt))
            for prompt, pair in chosen
            for group in self.groups
        ]
        return reads, items

    def _moved(
        self, reads: dict[int, Float[Tensor, "b s d"]], name: str
    ) -> dict[int, Float[Tensor, "b s d"]]:
        if not self.noise:
            return reads
        drawn = random.Random(f"{self.seed}/{name}/offsets").getrandbits(63)
        generator = torch.Generator().manual_seed(drawn)
        moved: dict[int, Tensor] = {}
        for layer, read in reads.items():
            # Lengths of float16 overflow when they are multiplied.
            wide = read.detach().to(torch.promote_types(read.dtype, torch.float32))
            offset = torch.randn(read.shape, generator=generator).to(wide)
            length = self.noise * wide.norm(dim=-1, keepdim=True)
            moved[layer] = (wide + length * offset / math.sqrt(read.shape[-1])).to(read.dtype)
        return moved

    def _item(self, prompt: int, pair: QuestionAnswer, group: tuple[int, ...]) -> OracleItem:
        key = (prompt, pair, group)
        if key not in self._items:
            read = self.reads[prompt]
            self._items[key] = self.loss.item(
                pair,
                layers=group,
                row=0,
                positions=read.positions,
                context_ids=read.token_ids,
            )
        return self._items[key]

    def _read(self, prompt: Prompt) -> _Read:
        encoded = self.model.encode(prompt, add_generation_prompt=not ends_with_reply(prompt))
        count = len(encoded)
        system = next((span for span in encoded.messages if span.role == "system"), None)
        begins = [begin for begin, _ in encoded.offsets]
        # The first token only marks the start.
        first = next((i for i, b in enumerate(begins) if system and b >= system.end), 1)
        first = min(first, count - 1)
        limit = self.model.context_length
        if limit is not None and count > limit:
            raise ContextLengthError(
                f"A prompt has {count} tokens, and the context of {self.model.name} is {limit}; "
                "shorten it."
            )
        if is_window(self.window) and self.window != "all":
            first = max(first, count - int(self.window))
        elif self.window != "all":
            raise PositionError(
                f'window is {self.window!r}; give a number of tokens from 1 on, or "all".'
            )
        return _Read(encoded.token_ids, tuple(range(first, count)))


class OraclesInTurn:
    """Several oracles as one objective: each step asks the next one, the curve is their mean.

    Args:
        objectives: of one target and behaviour, an oracle each.
    """

    def __init__(self, objectives: Sequence[OracleObjective]) -> None:
        self.objectives = tuple(objectives)

    def read_with(self, *, adapter: str | None, added: Mapping[int, Tensor]) -> None:
        """What is live in the target while it is read."""
        for one in self.objectives:
            one.adapter, one.added = adapter, added

    def identity(self) -> dict[str, Any]:
        """What decides the steps, for a state that is gone on from."""
        each = [one.identity() for one in self.objectives]
        # What all have in common stands alone, so that a refusal can name it.
        own = ("oracle", "contract", "prompts")
        return {name: value for name, value in each[0].items() if name not in own} | {
            name: [identity[name] for identity in each] for name in own
        }

    def step(self, number: int) -> float:
        """The loss of what a step draws; its gradient goes into what is trained."""
        return self.objectives[number % len(self.objectives)].step(number)

    def evaluate(self) -> float:
        """Loss over the same prompts, pairs and offsets at each call, the mean over oracles."""
        return sum(one.evaluate() for one in self.objectives) / len(self.objectives)
