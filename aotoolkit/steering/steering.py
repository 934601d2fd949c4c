"""Steering a target by the gradients of a frozen oracle (LatentQA's control, arXiv:2412.08686).

A behaviour is described in question-answer pairs. The target reads prompts; the oracle is asked the
questions about the target's activations; what would have made it give the answers flows back
through the oracle into an adapter on the target's first blocks, or into vectors.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from peft import LoraConfig
from torch import nn

from aotoolkit.errors import ContextLengthError, IncompatibleActivationsError, SteeringError
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.contract import Window
from aotoolkit.steering.behaviour import QUESTIONS, Behaviour, describe_behaviour
from aotoolkit.steering.objective import OracleObjective, OraclesInTurn
from aotoolkit.steering.optimisation import LoopOutcome, LoopSettings, optimise
from aotoolkit.steering.oracles import as_oracles
from aotoolkit.steering.result import LossPoint, Method, SteeringResult, as_prompts
from aotoolkit.steering.vector import SteeringVector
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Prompt, ends_with_reply
from aotoolkit.tracing.lora_targets import lora_targets

_REPLIES = 4
# Adam moves a weight by the rate in each step; a vector has to become as long as what it changes.
LEARNING_RATES: Mapping[Method, float] = {"single_layer": 1e-4, "layerwise": 1e-4, "vector": 0.1}


def steer(
    model: TracedModel,
    oracle: Oracle | Sequence[Oracle],
    behaviour: Behaviour | Mapping[str, str] | Iterable[tuple[str, str]] | str,
    prompts: Prompt | Sequence[Prompt],
    *,
    method: Method = "single_layer",
    layers: Layer | Sequence[Layer] | None = None,
    window: Window | None = None,
    steps: int = 100,
    lr: float | None = None,
    batch_size: int = 8,
    noise: float = 0.0,
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
        oracle: of either dialect. Several take turns, step by step: what only one of them takes for
            the behaviour does not satisfy the others. The first is asked what a sentence means, and
            says which layers are read by default; the window is each one's own.
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
        lr: learning rate; by default that of `LEARNING_RATES` for the method.
        batch_size: pairs of prompt and question in a step.
        noise: length of a random offset that each step adds to each vector before the oracle is
            told, as a share of the vector's own: the oracle shall be satisfied all around what it
            is told, not only there. The curve has offsets too, the same at each point. 2 did best
            in docs/steering.md; 0 is LatentQA's procedure.
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
    oracles = as_oracles(oracle)
    chosen = layers_to_read(model, oracles, method, layers)
    for one in oracles:
        check_base(model, one)
    if isinstance(behaviour, str):
        behaviour = describe_behaviour(
            model, oracles[0], behaviour, given, questions=questions, layer=chosen[-1]
        )
    wanted = Behaviour.of(behaviour)
    objective = OraclesInTurn(
        [
            OracleObjective(
                model,
                one,
                wanted,
                given,
                method=method,
                layers=chosen,
                window=window,
                batch_size=batch_size,
                gradient_checkpointing=gradient_checkpointing,
                tokens_per_pass=tokens_per_pass,
                seed=seed,
                noise=noise,
            )
            for one in oracles
        ]
    )
    check_replies(model, given, max_new_tokens)
    lr = LEARNING_RATES[method] if lr is None else lr
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
        objective.read_with(adapter=None, added=vectors)
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
        objective.read_with(adapter=adapter, added={})
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
    objective: OraclesInTurn,
    parameters: list[nn.Parameter],
    settings: LoopSettings,
    stop: threading.Event | None,
    on_point: Callable[[LossPoint], None] | None,
) -> LoopOutcome:
    models = {each for one in objective.objectives for each in (one.model, one.loss.oracle.model)}
    with only_trained(models, parameters):
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
    asked = _replied_to(prompts)
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


def check_replies(model: TracedModel, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Refuses before a run what its replies would be refused for after it.

    Raises:
        SteeringError: `max_new_tokens` is below 1.
        ContextLengthError: a prompt leaves no room for its reply.
    """
    if max_new_tokens < 1:
        raise SteeringError(f"max_new_tokens is {max_new_tokens}; replies need 1 or more.")
    limit = model.context_length
    for prompt in _replied_to(prompts):
        length = len(model.encode(prompt))
        if limit is not None and length + max_new_tokens > limit:
            raise ContextLengthError(
                f"A prompt has {length} tokens and its reply may have {max_new_tokens}, together "
                f"more than the context of {model.name}, {limit}. Shorten the prompt, or set a "
                "smaller max_new_tokens."
            )


def _replied_to(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that the target replies to, before and after."""
    return [prompt for prompt in prompts if not ends_with_reply(prompt)][:_REPLIES]


def layers_to_read(
    model: TracedModel,
    oracle: Oracle | Sequence[Oracle],
    method: str,
    layers: Layer | Sequence[Layer] | None,
) -> tuple[int, ...]:
    """Blocks to read, in order; of several oracles each can be asked about them."""
    oracle, *others = as_oracles(oracle)
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
            + (
                f"one layer with the oracle {oracle.adapter!r}"
                if method == "single_layer"
                else "at least one layer"
            )
            + ". Give one, or method='layerwise'."
        )
    for other in others:
        layers_to_read(model, other, method, resolved)
    return resolved


def check_base(model: TracedModel, oracle: Oracle) -> None:
    """Refuses an oracle of another base.

    Raises:
        IncompatibleActivationsError: it is.
    """
    if oracle.model is model:
        return
    if oracle.model.d_model != model.d_model or not oracle.model.has_base_digest(model.base_digest):
        raise IncompatibleActivationsError(
            f"The oracle's base {oracle.model.name!r} is not the target's ({model.name!r}); an "
            "oracle reads activations of its own base only. Load the oracle with model=, or steer "
            "oracle.model."
        )


def _wide(model: TracedModel) -> torch.dtype:
    return torch.promote_types(model.dtype, torch.float32)
