"""Several continuations of a prompt, which runs once: what forced choices are made of.

A candidate has a few tokens and a prompt hundreds, so running the prompt again for each candidate
is nearly all of the work of a forced choice.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, cache_utils

# Prompts and their answers with padding, in one batch: what the cache of keys and values grows
# with. For a model of 8 B, 5 GB.
MAX_TOKENS = 32_768

# Layers of a cache that hold keys and values and nothing else. Others have the same methods, but
# recurrent states that these leave as they are, or that a pass of several tokens reads wrongly.
_REPEATABLE = tuple(
    getattr(cache_utils, name)
    for name in ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer")
    if hasattr(cache_utils, name)
)


def continuation_log_probs(
    model: PreTrainedModel,
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    input_ids: Int[Tensor, "b s"],
    attention_mask: Int[Tensor, "b s"],
    position_ids: Int[Tensor, "b s"],
    prompts: AbstractContextManager[Any],
) -> list[list[float]] | None:
    """Summed log-probability (nats) of each continuation of each prompt.

    Args:
        model: Runs the prompts, then all continuations from the cache of their keys and values.
        continuations: Token ids of those of each prompt, none of them empty.
        input_ids: The prompts, left-padded.
        attention_mask: Of the prompts.
        position_ids: Of the prompts; continuations count on from them.
        prompts: Open while the prompts run, and closed before the continuations do: for what is
            injected into prompts.

    Returns:
        The sums, prompt by prompt; None where the model has no cache that can be repeated.
    """
    takes = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if "position_ids" in takes:
        inputs["position_ids"] = position_ids
    if "logits_to_keep" in takes:
        inputs["logits_to_keep"] = 1
    with prompts:
        ran: Any = model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **inputs
        )
    cache = getattr(ran, "past_key_values", None)
    if type(cache) is not DynamicCache or any(type(x) not in _REPEATABLE for x in cache.layers):
        return None
    counts = [len(own) for own in continuations]
    # On the CPU, from where it can index layers on any device.
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    flat = [list(ids) for own in continuations for ids in own]
    lengths = torch.tensor([len(ids) for ids in flat])
    longest = int(lengths.max())
    ids = torch.tensor([own + own[-1:] * (longest - len(own)) for own in flat])
    first = _log_probs(ran.logits[:, -1])[owner, ids[:, 0]]
    if longest == 1:
        sums = iter(first.tolist())
        return [[next(sums) for _ in range(count)] for count in counts]
    cache.batch_select_indices(owner)
    places = torch.arange(longest)[None]
    if "position_ids" in takes:
        # Padding stands where the last token does, for models that have no place beyond.
        steps = torch.minimum(places[:, 1:], (lengths[:, None] - 1).clamp_min(1))
        inputs["position_ids"] = position_ids[:, -1:][owner] + steps.to(position_ids.device)
    inputs.pop("logits_to_keep", None)
    seen = (places < lengths[:, None])[:, :-1].to(attention_mask)
    following: Any = model(
        input_ids=ids[:, :-1].to(input_ids.device),
        attention_mask=torch.cat([attention_mask[owner], seen], dim=1),
        past_key_values=cache,
        use_cache=True,
        **inputs,
    )
    # Row by row: all rows' log-probabilities of all tokens would take more memory than the model.
    rest = [
        float(_log_probs(logits[: len(own) - 1]).gather(1, torch.tensor(own[1:])[:, None]).sum())
        for logits, own in zip(following.logits, flat, strict=True)
    ]
    sums = iter((first.double() + torch.tensor(rest, dtype=torch.float64)).tolist())
    return [[next(sums) for _ in range(count)] for count in counts]


def _log_probs(logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    return logits.float().log_softmax(-1).cpu()


def sharing_batches(
    groups: Sequence[Sequence[int]],
    prompts: Sequence[int],
    continuations: Sequence[int],
    max_batch: int,
) -> Iterator[list[list[int]]]:
    """Groups of rows of one prompt each, by what can run together.

    Args:
        groups: Indices of the rows of each prompt.
        prompts: Tokens of each row's prompt.
        continuations: Tokens of each row's continuation.
        max_batch: Most rows in one batch; a larger group is parted. `MAX_TOKENS` bounds it too.
    """
    parts: list[tuple[int, int, list[int]]] = []
    for group in groups:
        prompt = prompts[group[0]]
        longest = max(continuations[index] for index in group)
        size = max(1, min(max_batch, MAX_TOKENS // (prompt + longest)))
        parts += [
            (prompt, longest, list(group[start : start + size]))
            for start in range(0, len(group), size)
        ]
    batch: list[list[int]] = []
    count = widest = 0
    for prompt, longest, part in sorted(parts, key=lambda part: part[0]):
        # Sorted, so that this prompt is the longest so far.
        together, most = count + len(part), max(widest, longest)
        if batch and (together > max_batch or together * (prompt + most) > MAX_TOKENS):
            yield batch
            batch, together, most = [], len(part), longest
        batch.append(part)
        count, widest = together, most
    if batch:
        yield batch
