"""Several continuations of a prompt, which runs once: what forced choices are made of.

A candidate has a few tokens and a prompt hundreds, so running the prompt again for each candidate
is nearly all of the work of a forced choice.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

# Prompts and their answers with padding, in one batch: what the cache of keys and values grows
# with. For a model of 8 B, 5 GB.
MAX_TOKENS = 32_768


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
    cache = ran.past_key_values
    if not hasattr(cache, "batch_select_indices"):
        return None
    device = input_ids.device
    counts = [len(own) for own in continuations]
    owner = torch.arange(len(counts), device=device).repeat_interleave(
        torch.tensor(counts, device=device)
    )
    flat = [list(ids) for own in continuations for ids in own]
    lengths = torch.tensor([len(ids) for ids in flat], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([own + own[-1:] * (longest - len(own)) for own in flat], device=device)
    places = torch.arange(longest, device=device)[None]
    is_own = places < lengths[:, None]
    logits = ran.logits[:, -1:][owner]
    if longest > 1:
        cache.batch_select_indices(owner)
        if "position_ids" in takes:
            # Padding stands where the last token does, for models that have no place beyond.
            steps = torch.minimum(places[:, 1:], (lengths[:, None] - 1).clamp_min(1))
            inputs["position_ids"] = position_ids[:, -1:][owner] + steps
        inputs.pop("logits_to_keep", None)
        seen = is_own[:, :-1].to(attention_mask.dtype)
        following: Any = model(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([attention_mask[owner], seen], dim=1),
            past_key_values=cache,
            use_cache=True,
            **inputs,
        )
        logits = torch.cat([logits, following.logits], dim=1)
    chosen = logits.float().log_softmax(-1).gather(2, ids[:, :, None]).squeeze(2)
    sums = iter(chosen.masked_fill(~is_own, 0.0).sum(1).tolist())
    return [[next(sums) for _ in range(count)] for count in counts]


def sharing_batches(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], max_batch: int
) -> Iterator[list[list[int]]]:
    """Groups of rows of one prompt each, by what can run together.

    Args:
        groups: Indices of the rows of each prompt.
        lengths: Tokens of each row.
        max_batch: Most rows in one batch; a larger group is parted. `MAX_TOKENS` bounds it too.
    """
    parts: list[tuple[int, list[int]]] = []
    for group in groups:
        length = max(lengths[index] for index in group)
        size = max(1, min(max_batch, MAX_TOKENS // length))
        parts += [
            (length, list(group[start : start + size])) for start in range(0, len(group), size)
        ]
    batch: list[list[int]] = []
    count = 0
    for length, part in sorted(parts, key=lambda part: part[0]):
        if batch and (count + len(part) > max_batch or (count + len(part)) * length > MAX_TOKENS):
            yield batch
            batch, count = [], 0
        batch.append(part)
        count += len(part)
    if batch:
        yield batch
