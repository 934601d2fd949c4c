"""Steering a target by the gradients of a frozen oracle (LatentQA's control, arXiv:2412.08686).

A behaviour is described in question-answer pairs. The target reads prompts; the oracle is asked the
questions about the target's activations; what would have made it give the answers flows back
through the oracle into an adapter on the target's first blocks, or into vectors.
"""

import contextlib
import hashlib
import json
import math
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from peft import LoraConfig
from torch import Tensor, nn

from aotoolkit.errors import (
    ContextLengthError,
    IncompatibleActivationsError,
    PositionError,
    SteeringError,
)
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.contract import Window, is_window
from aotoolkit.steering.behaviour import QUESTIONS, Behaviour, QuestionAnswer, describe_behaviour
from aotoolkit.steering.optimisation import LoopOutcome, LoopSettings, optimise
from aotoolkit.steering.oracle_loss import OracleItem, OracleLoss
from aotoolkit.steering.result import LossPoint, Method, SteeringResult, as_prompts
from aotoolkit.steering.target import differentiable_residuals, right_padded
from aotoolkit.steering.vector import SteeringVector
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Prompt
from aotoolkit.tracing.lora_targets import lora_targets

# Pairs of prompt and question that the curve is measured on.
_EVALUATED = 64
_REPLIES = 4


@dataclass(frozen=True)
class _Read:
    """A prompt of the target and which places of it the oracle is told."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]


def steer(
    model: TracedModel,
    oracle: Oracle,
    behaviour: Behaviour | Mapping[str, str] | Iterable[tuple[str, str]] | str,
    prompts: Prompt | Sequence[Prompt],
    *,
    method: Method = "single_layer",
    layers: Layer | Sequence[Layer] | None = None,
    window: Window | None = None,
    steps: int = 100,
    lr: float = 1e-4,
    batch_size: int = 8,
    rank: int = 16,
    alpha: float = 32,
    questions: Sequence[str] = QUESTIONS,
    adapter: str = "steered",
    gradient_checkpointing: bool = False,
    tokens_per_pass: int = 4096,
    eval_every: int = 10,
    folder: str | Path | None = None,
    seed: int = 0,
    max_new_tokens: int = 48,
    stop: threading.Event | None = None,
    on_point: Callable[[LossPoint], None] | None = None,
    progress: bool = True,
) -> SteeringResult:
    """Changes a target until an oracle answers questions about it in the wanted way.

    Base weights and oracle stay as they are, bit for bit. On an error nothing of the adapter stays.

    Args:
        model: the target, read without an adapter. It and the oracle may share one base (the usual
            case: `oracle.model is model`), or be two copies of it.
        oracle: of either dialect.
        behaviour: pairs of question and wanted answer; or a sentence, such as "Always talk about
            boats.", from which `describe_behaviour` makes the pairs.
        prompts: what the target reads meanwhile: chats with or without a last reply, or texts.
        method: `single_layer`: one loss, at one layer. `layerwise`: a loss at each layer, which
            moves the blocks since the layer before alone. `vector`: no adapter but a vector for
            each layer, added to the stream at every token; the cheapest.
        layers: what is read. By default what the contract recommends, or else the middle one of
            those that the oracle was trained on; `layerwise`: all of them, or where there is but
            one, all blocks up to it.
        window: how many of the last tokens of a prompt the oracle is told; "all" for every one. By
            default what the contract recommends, or else all. A system turn is never among them,
            as in LatentQA, nor the first token, which only marks the start.
        steps: of the optimiser.
        lr: learning rate.
        batch_size: pairs of prompt and question in a step.
        rank: of the LoRA adapter, on all linear layers of the blocks up to the last one read.
        alpha: of it.
        questions: what is asked to make pairs of a sentence; use what this oracle knows.
        adapter: name of the new adapter.
        gradient_checkpointing: runs blocks again in the backward pass instead of keeping what they
            computed: less memory, a third more time.
        tokens_per_pass: of the oracle's prompts in one pass.
        eval_every: steps between two points of the loss curve.
        folder: keeps the state here, so that the same call goes on where it ended.
        seed: of the adapter's first weights and of what each step draws.
        max_new_tokens: of the replies in the result.
        stop: ends the run when it is set, from another thread; so does an interrupt of the kernel,
            where `stop` is given. The best so far is the result.
        on_point: is told each point of the curve.
        progress: shows a progress bar.

    Raises:
        SteeringError: a setting, behaviour or prompt that nothing can be steered with.
        LayerError: there is no such layer, or the oracle's transform has no statistics of it.
        AdapterLoadError: the name is taken.
        LoraTargetError: the blocks have no linear layer.
        IncompatibleActivationsError: the oracle is of another base.
        ContextLengthError, PositionError, QuestionError, PromptError: a prompt or pair is refused.
        NonFiniteError: the loss is NaN or infinite.
        RunMismatchError, CorruptedFileError: `folder` holds a run that cannot be gone on from.

    Warns:
        UntrainedLayerWarning: the oracle was not trained on a layer, where pairs are made.
    """
    given = as_prompts(prompts)
    chosen = layers_to_read(model, oracle, method, layers)
    _check_base(model, oracle)
    if isinstance(behaviour, str):
        behaviour = describe_behaviour(
            model, oracle, behaviour, given, questions=questions, layer=chosen[-1]
        )
    wanted = Behaviour.of(behaviour)
    objective = OracleObjective(
        model,
        oracle,
        wanted,
        given,
        method=method,
        layers=chosen,
        window=window,
        batch_size=batch_size,
        gradient_checkpointing=gradient_checkpointing,
        tokens_per_pass=tokens_per_pass,
        seed=seed,
    )
    settings = LoopSettings(
        steps=steps,
        lr=lr,
        eval_every=eval_every,
        folder=None if folder is None else Path(folder),
        identity=objective.identity() | {"lr": lr, "rank": rank, "alpha": alpha},
        progress=progress,
    )
    if method == "vector":
        vectors = {
            layer: nn.Parameter(torch.zeros(model.d_model, device=model.device, dtype=_wide(model)))
            for layer in chosen
        }
        objective.added = vectors
        outcome = _run(objective, list(vectors.values()), settings, stop, on_point)
        vector = SteeringVector(
            {layer: one.detach().float().cpu() for layer, one in vectors.items()},
            model.base_digest,
        )
        return finished(
            model,
            given,
            outcome,
            adapter=None,
            vector=vector,
            method=method,
            layers=chosen,
            behaviour=wanted,
            max_new_tokens=max_new_tokens,
        )
    with new_adapter(
        model, adapter, num_blocks=chosen[-1] + 1, rank=rank, alpha=alpha, seed=seed
    ) as parameters:
        objective.adapter = adapter
        outcome = _run(objective, parameters, settings, stop, on_point)
        return finished(
            model,
            given,
            outcome,
            adapter=adapter,
            vector=None,
            method=method,
            layers=chosen,
            behaviour=wanted,
            max_new_tokens=max_new_tokens,
        )


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
    ) -> None:
        if batch_size < 1:
            raise SteeringError(f"batch_size is {batch_size}; it must be 1 or more.")
        self.model = model
        self.behaviour = behaviour
        self.method = method
        self.layers = layers
        self.batch_size = batch_size
        self.checkpointed = gradient_checkpointing
        self.seed = seed
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
        }

    def step(self, number: int) -> float:
        """The loss of what a step draws; its gradient goes into what is trained."""
        return self.backward(self.drawn(number))

    def drawn(self, number: int) -> list[tuple[int, QuestionAnswer]]:
        """Prompts and pairs of a step: each prompt comes once before one comes again."""
        rng = random.Random(f"{self.seed}/{number}")
        prompts: list[int] = []
        while len(prompts) < self.batch_size:
            prompts += rng.sample(range(len(self.reads)), len(self.reads))
        return [(prompt, rng.choice(self.behaviour.pairs)) for prompt in prompts[: self.batch_size]]

    def backward(self, chosen: Sequence[tuple[int, QuestionAnswer]]) -> float:
        """Loss of prompts and pairs, with the gradient added to what is trained."""
        with self.model.lock:
            reads, items = self._forward(chosen, gradients=True)
            loss, found = self.loss(reads, items)
            # The blocks may run again now, with the adapter that they ran with before.
            with self.model.inference(self.adapter), torch.enable_grad():
                layers = list(reads)
                torch.autograd.backward(
                    [reads[layer] for layer in layers], [found[layer] for layer in layers]
                )
        return loss

    def evaluate(self) -> float:
        """Loss over the same prompts and pairs at each call."""
        count, total = 0, 0.0
        for start in range(0, len(self.evaluated), self.batch_size):
            chosen = self.evaluated[start : start + self.batch_size]
            with self.model.lock:
                reads, items = self._forward(chosen, gradients=False)
                loss, _ = self.loss(reads, items, gradients=False)
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
        )
        items = [
            self._item(prompt, pair, group).at(rows.index(prompt))
            for prompt, pair in chosen
            for group in self.groups
        ]
        return reads, items

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
        encoded = self.model.encode(prompt, add_generation_prompt=not _ends_with_reply(prompt))
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


@contextlib.contextmanager
def new_adapter(
    model: TracedModel, name: str, *, num_blocks: int, rank: int, alpha: float, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Inside, the model has a new adapter; its weights are given.

    Afterwards the adapter stays, frozen; after an error it is gone.
    """
    if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise SteeringError(f"rank is {rank} and alpha {alpha}; both must be above 0.")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # PEFT divides by the rank
        target_modules=list(lora_targets(model, num_blocks=num_blocks, experts=False).modules),
        task_type="CAUSAL_LM",
    )
    known = set(model.hf_model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(name, config)
    parameters = [weight for weight in model.hf_model.parameters() if weight not in known]
    try:
        yield parameters
        for weight in parameters:
            weight.requires_grad_(False)
            weight.grad = None
    except BaseException:
        model.delete_adapter(name)
        raise


@contextlib.contextmanager
def only_trained(
    models: Iterable[TracedModel], parameters: Sequence[nn.Parameter]
) -> Iterator[None]:
    """Inside, these parameters alone require gradients; afterwards all flags are as before."""
    flags = [
        (weight, weight.requires_grad) for one in models for weight in one.hf_model.parameters()
    ]
    try:
        for weight, _ in flags:
            weight.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _run(
    objective: OracleObjective,
    parameters: list[nn.Parameter],
    settings: LoopSettings,
    stop: threading.Event | None,
    on_point: Callable[[LossPoint], None] | None,
) -> LoopOutcome:
    with only_trained({objective.model, objective.loss.oracle.model}, parameters):
        return optimise(
            parameters,
            step=objective.step,
            evaluate=objective.evaluate,
            settings=settings,
            stop=stop,
            on_point=on_point,
        )


def finished(
    model: TracedModel,
    prompts: Sequence[Prompt],
    outcome: LoopOutcome,
    *,
    adapter: str | None,
    vector: SteeringVector | None,
    method: Method | None,
    layers: tuple[int, ...],
    behaviour: Behaviour | None,
    max_new_tokens: int,
) -> SteeringResult:
    """The result of a loop, with replies of the target before and after."""
    asked = [prompt for prompt in prompts if not _ends_with_reply(prompt)][:_REPLIES]
    shared: dict[str, Any] = {
        "model": model,
        "adapter": adapter,
        "vector": vector,
        "method": method,
        "layers": layers,
        "behaviour": behaviour,
        "losses": outcome.losses,
        "best_step": outcome.best_step,
        "steps": outcome.steps,
        "stopped": outcome.stopped,
        "prompts": tuple(asked),
    }
    nothing = ("",) * len(asked)
    made = SteeringResult(**shared, before=nothing, after=nothing)
    if not asked:
        return made
    before = model.generate(asked, max_new_tokens=max_new_tokens)
    after = made.generate(asked, max_new_tokens=max_new_tokens)
    return SteeringResult(**shared, before=tuple(before), after=tuple(after))


def layers_to_read(
    model: TracedModel,
    oracle: Oracle,
    method: str,
    layers: Layer | Sequence[Layer] | None,
) -> tuple[int, ...]:
    """Blocks to read, in order."""
    if method not in get_args(Method):
        raise SteeringError(f"method is {method!r}; give one of {', '.join(get_args(Method))}.")
    contract = oracle.contract
    several = contract.layers_per_prompt == "several"
    if layers is None:
        trained = sorted(contract.read_layers)
        if method == "layerwise":
            whole = oracle.transform.kind == "none" and len(trained) == 1
            chosen = range(trained[0] + 1) if whole else trained
        elif contract.recommended.layers:
            chosen = contract.recommended.layers
        else:
            chosen = trained if several else [trained[len(trained) // 2]]
        layers = list(chosen)
    given = [layers] if isinstance(layers, int | float) else list(layers)
    resolved = tuple(sorted({model.resolve_layer(layer) for layer in given}))
    if not resolved or (method == "single_layer" and len(resolved) > 1 and not several):
        raise SteeringError(
            f"layers is {layers!r}; the method {method!r} reads "
            + ("one layer with this oracle" if method == "single_layer" else "at least one layer")
            + ". Give one, or method='layerwise'."
        )
    return resolved


def _check_base(model: TracedModel, oracle: Oracle) -> None:
    if oracle.model is model:
        return
    if oracle.model.d_model != model.d_model or not oracle.model.has_base_digest(model.base_digest):
        raise IncompatibleActivationsError(
            f"The oracle's base {oracle.model.name!r} is not the target's ({model.name!r}); an "
            "oracle reads activations of its own base only. Load the oracle with model=, or steer "
            "oracle.model."
        )


def _ends_with_reply(prompt: Any) -> bool:
    last = prompt[-1]
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def _wide(model: TracedModel) -> torch.dtype:
    return torch.promote_types(model.dtype, torch.float32)
