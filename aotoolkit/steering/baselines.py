"""What a user would do without an oracle, with the same prompts, blocks and steps.

A system prompt needs no code: put it in front of the chat. Random pairs, the control of steering
through an oracle, are `steer` with `shuffled_answers`.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from aotoolkit.errors import SteeringError
from aotoolkit.steering.behaviour import Behaviour, QuestionAnswer
from aotoolkit.steering.optimisation import LoopSettings, optimise
from aotoolkit.steering.result import LossPoint, SteeringResult
from aotoolkit.steering.steering import check_replies, finished, new_adapter, only_trained
from aotoolkit.steering.target import right_padded
from aotoolkit.steering.vector import SteeringVector
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Prompt

_EVALUATED = 64


def mean_difference(
    model: TracedModel,
    with_behaviour: Sequence[Prompt],
    without: Sequence[Prompt],
    *,
    layers: Layer | Sequence[Layer],
    last: int = 1,
) -> SteeringVector:
    """Vectors from the mean activation without a behaviour to that with it (arXiv:2312.06681).

    Args:
        model: the target, read without an adapter.
        with_behaviour: prompts under which it shows, such as with a system prompt.
        without: the same without.
        layers: blocks, each of which gets a vector.
        last: tokens at the end of each prompt over which the mean is taken.

    Raises:
        SteeringError: there are no prompts of a kind.
        LayerError, PromptError: see `TracedModel.activations`.
    """
    if not with_behaviour or not without:
        raise SteeringError("A mean difference needs prompts with the behaviour, and without it.")
    means = []
    blocks: tuple[int, ...] = ()
    for prompts in (with_behaviour, without):
        read = model.activations(list(prompts), layers=layers)
        blocks = read[0].layers
        means.append(
            torch.stack([acts.vectors[:, -last:].float().mean(1) for acts in read]).mean(0)
        )
    difference = means[0] - means[1]
    return SteeringVector(dict(zip(blocks, difference, strict=True)), model.base_digest)


def shuffled_answers(
    behaviour: Behaviour | Mapping[str, str] | Sequence[tuple[str, str]],
    others: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
) -> Behaviour:
    """The same questions with answers drawn at random: steers as hard, to nothing in particular.

    Args:
        behaviour: whose questions are kept.
        others: question -> answers to draw from.
        seed: of the draw.

    Raises:
        SteeringError: a question has no answers to draw from.
    """
    rng = random.Random(seed)
    pairs = []
    for pair in Behaviour.of(behaviour).pairs:
        if not others.get(pair.question):
            raise SteeringError(f"There are no answers to {pair.question!r} to draw from.")
        pairs.append(QuestionAnswer(pair.question, rng.choice(others[pair.question])))
    return Behaviour(tuple(pairs))


def fine_tune(
    model: TracedModel,
    examples: Sequence[tuple[Prompt, str]],
    *,
    num_blocks: int,
    steps: int = 100,
    lr: float = 1e-4,
    batch_size: int = 8,
    rank: int = 16,
    alpha: float = 32,
    adapter: str = "fine_tuned",
    eval_every: int = 10,
    folder: str | Path | None = None,
    seed: int = 0,
    max_new_tokens: int = 48,
    stop: threading.Event | None = None,
    on_point: Callable[[LossPoint], None] | None = None,
    progress: bool = True,
) -> SteeringResult:
    """Supervised fine-tuning of the same LoRA on prompts with the wanted replies.

    Args:
        model: the target.
        examples: chats without a last reply (or texts), and what should follow.
        num_blocks: how many of the first blocks are adapted.
        steps: as for `steer`, and so are the others.
        lr: learning rate.
        batch_size: examples in a step.
        rank: of the adapter.
        alpha: of it.
        adapter: its name.
        eval_every: steps between two points of the curve.
        folder: keeps the state.
        seed: of weights and draws.
        max_new_tokens: of the replies in the result.
        stop: ends the run; the best so far is the result.
        on_point: is told each point of the curve.
        progress: shows a progress bar.

    Raises:
        SteeringError: there are no examples, or a setting is out of range.
        AdapterLoadError, LoraTargetError, PromptError, NonFiniteError, RunMismatchError,
            CorruptedFileError: as `steer`.
    """
    if not examples or batch_size < 1:
        raise SteeringError(
            f"{len(examples)} examples in batches of {batch_size}; give at least one of each."
        )
    rows = [_example(model, prompt, reply) for prompt, reply in examples]
    check_replies(model, [prompt for prompt, _ in examples], max_new_tokens)
    evaluated = random.Random(f"{seed}/evaluated").sample(rows, min(_EVALUATED, len(rows)))
    settings = LoopSettings(
        steps=steps,
        lr=lr,
        eval_every=eval_every,
        folder=None if folder is None else Path(folder),
        identity={
            "base": model.base_digest,
            "examples": [[str(prompt), reply] for prompt, reply in examples],
            "num_blocks": num_blocks,
            "batch_size": batch_size,
            "rank": rank,
            "alpha": alpha,
            "lr": lr,
            "seed": seed,
        },
        progress=progress,
    )

    def drawn(number: int) -> list[tuple[tuple[int, ...], int]]:
        return random.Random(f"{seed}/{number}").choices(rows, k=batch_size)

    with new_adapter(
        model, adapter, num_blocks=num_blocks, rank=rank, alpha=alpha, seed=seed
    ) as parameters:

        def step(number: int) -> float:
            return _reply_loss(model, adapter, drawn(number), parameters)

        def evaluate() -> float:
            return _reply_loss(model, adapter, evaluated, ())

        with only_trained([model], parameters):
            outcome = optimise(
                parameters,
                step=step,
                evaluate=evaluate,
                settings=settings,
                stop=stop,
                on_point=on_point,
            )
        return finished(
            model,
            [prompt for prompt, _ in examples],
            outcome,
            adapter=adapter,
            vector=None,
            method=None,
            layers=(),
            behaviour=None,
            max_new_tokens=max_new_tokens,
        )


def text_loss(model: TracedModel, texts: Sequence[Prompt], *, adapter: str | None) -> list[float]:
    """Mean -log p of a token of each text: what steering did to everything else.

    Args:
        model: the target; inside `SteeringResult.live` it is the steered one.
        texts: texts or whole chats.
        adapter: what is live.
    """
    losses = []
    for text in texts:
        ids = model.encode(text, add_generation_prompt=False).token_ids
        losses.append(_reply_loss(model, adapter, [(ids, 1)], ()))
    return losses


def _example(model: TracedModel, prompt: Prompt, reply: str) -> tuple[tuple[int, ...], int]:
    """Token ids of prompt and reply, and where the reply begins."""
    if isinstance(prompt, str):
        whole = model.encode(prompt + reply).token_ids
        return whole, len(model.encode(prompt).token_ids)
    before = model.encode(prompt).token_ids
    answered = [*prompt, {"role": "assistant", "content": reply}]
    return model.encode(answered, add_generation_prompt=False).token_ids, len(before)  # pyright: ignore[reportArgumentType]


def _reply_loss(
    model: TracedModel,
    adapter: str | None,
    rows: Sequence[tuple[Sequence[int], int]],
    trained: Sequence[nn.Parameter],
) -> float:
    """Mean -log p of a token of the replies; with `trained`, the gradient goes into them."""
    ids = right_padded(model, [row for row, _ in rows])
    labels = torch.full_like(ids, -100)
    for number, (row, start) in enumerate(rows):
        labels[number, start : len(row)] = ids[number, start : len(row)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.inference(adapter))
        stack.enter_context(torch.set_grad_enabled(bool(trained)))
        logits: Tensor = model.hf_model(input_ids=ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
        )
        if trained:
            torch.autograd.backward(loss)
    return float(loss.detach())
