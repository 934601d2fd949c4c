"""Prompts in, replies or their log-probabilities out: where baselines run a model.

Rows of different adapters may be mixed: they run adapter by adapter, in batches of like length.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import ArmNotApplicableError, ContextLengthError
from aotoolkit.evals.items import SECONDS_BEFORE_PROGRESS
from aotoolkit.oracle.continuations import continuation_log_probs, sharing_batches
from aotoolkit.oracle.generation import only_stated_options
from aotoolkit.oracle.injection import Injection, injecting
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Message, render_chat

_MARK = "\ue000\ue001"
# Rows in a batch of candidates, for each that a batch of prompts may have: they are a few tokens.
_CANDIDATES_A_PROMPT = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One prompt to be continued.

    Attributes:
        token_ids: The prompt.
        adapter: The adapter that is live.
        vectors: [n d], written over the residual stream at `places`; None for none.
        places: Indices into `token_ids`.
        inject_layers: Blocks after which they are written, each time the same.
    """

    token_ids: tuple[int, ...]
    adapter: str | None = None
    vectors: Float[Tensor, "n d"] | None = None
    places: tuple[int, ...] = ()
    inject_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn; without one they are greedy.

    Attributes:
        temperature: Divides the logits.
        seed: Of torch's generator, which is put back afterwards.
    """

    temperature: float
    seed: int


def encode_rendered(
    model: TracedModel, text: str, *, special: bool = False
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Token ids of a text and their places in it.

    Args:
        model: Whose tokenizer is used.
        text: The text; a rendered chat has its special tokens already.
        special: Whether to add the tokenizer's special tokens, as to a plain text.
    """
    encoded = model.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return tuple(encoded["input_ids"]), tuple((a, b) for a, b in encoded["offset_mapping"])


def reply_prompt(model: TracedModel, chat: Sequence[Message], **kwargs: Any) -> str:
    """A chat as text, with the header of a reply after it.

    Args:
        model: Whose chat template writes it.
        chat: The messages.
        **kwargs: For the template.
    """
    return _rendered(model, chat, add_generation_prompt=True, **kwargs)


def user_turn_prompt(model: TracedModel, chat: Sequence[Message], **kwargs: Any) -> str:
    """A chat as text, with the header of a further user's turn after it.

    Raises:
        ArmNotApplicableError: The chat template does not write the turn's content as it is.
    """
    marked = [*chat, {"role": "user", "content": _MARK}]
    text = _rendered(model, marked, add_generation_prompt=False, **kwargs)
    before, found, _ = text.partition(_MARK)
    if not found:
        raise ArmNotApplicableError(
            "The chat template does not write a user's content as it is, so there is no header "
            "after which the model could write a user's turn. Leave this baseline out."
        )
    return before


def _rendered(
    model: TracedModel, chat: Sequence[Message], *, add_generation_prompt: bool, **kwargs: Any
) -> str:
    # Checks first: a template's own complaint says less.
    text = render_chat(model.tokenizer, chat, add_generation_prompt=add_generation_prompt)
    if not kwargs:
        return text
    return str(
        model.tokenizer.apply_chat_template(
            [dict(message) for message in chat],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are no text: those with a role, and all that are marked as special."""
    marked = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {*tokenizer.all_special_ids, *marked}


def end_of_turn_id(model: TracedModel) -> int | None:
    """The special token with which the chat template ends a reply; None where there is none."""
    if not model.tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _MARK}]
    text = render_chat(model.tokenizer, chat, add_generation_prompt=False)
    ids, _ = encode_rendered(model, text.rpartition(_MARK)[2])
    return ids[0] if ids and ids[0] in special_ids(model.tokenizer) else None


def generate_replies(
    model: TracedModel,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    sampling: Sampling | None = None,
    description: str = "generating",
) -> list[str]:
    """What the model writes after each row, without special tokens.

    Nothing is taken from the model's generation config but the tokens that end a reply: a penalty
    in it would change what a baseline says, and not what an oracle says, whose answers leave it out
    too.

    Args:
        model: The model.
        rows: The prompts.
        max_new_tokens: Longest reply.
        batch_size: Rows in one batch.
        sampling: Draws replies; greedy by default.
        description: Of the progress bar.

    Raises:
        ContextLengthError: Prompt and reply are longer than the context.
    """
    config: Any = model.hf_model.generation_config
    given = config.eos_token_id
    stops = [end_of_turn_id(model), model.tokenizer.eos_token_id]
    stops += given if isinstance(given, list) else [given]
    ends = sorted({int(token) for token in stops if token is not None})
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sampling is not None}
    if sampling is not None:
        options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    if ends:
        options["eos_token_id"] = ends
    replies: dict[int, str] = {}
    with _seeded(model, sampling):
        for indices in _batches(model, rows, batch_size, max_new_tokens, description):
            batch = [rows[i] for i in indices]
            ids, mask = model.pad([row.token_ids for row in batch])
            with (
                model.using(batch[0].adapter),  # for its lock
                _writing(model, batch, ids.shape[1]),
                only_stated_options(model.hf_model),
            ):
                new = model.generate_ids(ids, mask, adapter=batch[0].adapter, **options)
            for i, row in zip(indices, new.tolist(), strict=True):
                stop = next((n for n, token in enumerate(row) if token in ends), len(row))
                text = model.tokenizer.decode(row[:stop], skip_special_tokens=True)
                replies[i] = str(text).strip()
    return [replies[i] for i in range(len(rows))]


def reply_log_probs(
    model: TracedModel,
    rows: Sequence[Row],
    replies: Sequence[Sequence[str]],
    *,
    ended: bool,
    batch_size: int = 32,
    description: str = "scoring",
) -> list[list[float]]:
    """Log-probability (nats) of candidate replies to each row, summed over their tokens.

    Where nothing ends a candidate, one whose tokens another goes on from ("apple", "apple pie")
    would win over it whatever the model thinks, since nothing is less likely than its own
    beginning. So its score is that of its tokens *and not* going on as another candidate.

    Args:
        model: The model.
        rows: The prompts.
        replies: Candidates for each row.
        ended: Whether a candidate is the whole reply, so that the end of the turn counts too.
        batch_size: Rows in one batch; where candidates follow one prompt, which then runs once, up
            to four times as many of them.
        description: Of the progress bar.

    Raises:
        ContextLengthError: Prompt and reply are longer than the context.
    """
    end = end_of_turn_id(model) if ended else None
    whole: list[Row] = []
    lengths: list[int] = []
    owned: list[list[int]] = []
    for row, candidates in zip(rows, replies, strict=True):
        owned.append(list(range(len(whole), len(whole) + len(candidates))))
        for text in candidates:
            ids, _ = encode_rendered(model, text)
            ids += () if end is None else (end,)
            assert ids, "a candidate has at least one token"
            lengths.append(len(ids))
            whole.append(replace(row, token_ids=row.token_ids + ids))
    _check_length(model, whole, 0)
    most = _CANDIDATES_A_PROMPT * batch_size
    scores = _shared_scores(model, whole, lengths, owned, most, description)
    rest = [i for i in range(len(whole)) if i not in scores]
    for places in _batches(model, [whole[i] for i in rest], batch_size, 0, description):
        indices = [rest[place] for place in places]
        scores |= zip(
            indices,
            _whole_scores(model, [whole[i] for i in indices], [lengths[i] for i in indices]),
            strict=True,
        )
    return [
        _without_continuations(
            [whole[i].token_ids[-lengths[i] :] for i in own], [scores[i] for i in own]
        )
        for own in owned
    ]


def _shared_scores(
    model: TracedModel,
    whole: Sequence[Row],
    lengths: Sequence[int],
    owned: Sequence[Sequence[int]],
    max_batch: int,
    description: str,
) -> dict[int, float]:
    """Of candidates whose prompt has others too, each prompt run once, where that can be done."""
    groups: dict[Any, list[Sequence[int]]] = {}
    for own in owned:
        if len(own) > 1:
            groups.setdefault((whole[own[0]].adapter, whole[own[0]].inject_layers), []).append(own)
    prompt_lengths = [
        len(row.token_ids) - length for row, length in zip(whole, lengths, strict=True)
    ]
    scores: dict[int, float] = {}
    total = sum(len(own) for some in groups.values() for own in some)
    with tqdm(total=total, desc=description, delay=SECONDS_BEFORE_PROGRESS, leave=False) as bar:
        for (adapter, _), some in groups.items():
            for parts in sharing_batches(some, prompt_lengths, lengths, max_batch):
                prompts = [
                    replace(whole[own[0]], token_ids=whole[own[0]].token_ids[: -lengths[own[0]]])
                    for own in parts
                ]
                ids, mask = model.pad([row.token_ids for row in prompts])
                with model.inference(adapter):
                    found = continuation_log_probs(
                        model.hf_model,
                        [[whole[i].token_ids[-lengths[i] :] for i in own] for own in parts],
                        input_ids=ids,
                        attention_mask=mask,
                        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                        prompts=_writing(model, prompts, ids.shape[1]),
                    )
                if found is None:
                    return scores
                for own, values in zip(parts, found, strict=True):
                    scores |= zip(own, values, strict=True)
                    bar.update(len(own))
    return scores


def _whole_scores(model: TracedModel, batch: Sequence[Row], lengths: Sequence[int]) -> list[float]:
    """Of candidates that run with their prompts, in one batch."""
    takes = inspect.signature(model.hf_model.forward).parameters
    ids, mask = model.pad([row.token_ids for row in batch])
    keep = max(lengths) + 1
    inputs: dict[str, Any] = {"use_cache": False}
    if "position_ids" in takes:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in takes:
        inputs["logits_to_keep"] = keep
    with model.inference(batch[0].adapter), _writing(model, batch, ids.shape[1]):
        logits = model.hf_model(input_ids=ids, attention_mask=mask, **inputs).logits
    predicted = logits[:, -keep:-1].float().log_softmax(-1)
    chosen = predicted.gather(-1, ids[:, 1 - keep :, None]).squeeze(-1).cpu()
    return [float(row[-length:].sum()) for row, length in zip(chosen, lengths, strict=True)]


def _without_continuations(
    candidates: Sequence[tuple[int, ...]], log_probs: Sequence[float]
) -> list[float]:
    """Log-probability of each candidate's tokens, less that of going on as another candidate."""

    def goes_on(longer: tuple[int, ...], shorter: tuple[int, ...]) -> bool:
        return len(longer) > len(shorter) and longer[: len(shorter)] == shorter

    results = []
    for ids, log_prob in zip(candidates, log_probs, strict=True):
        longer = {
            other: value
            for other, value in zip(candidates, log_probs, strict=True)
            if goes_on(other, ids)
        }
        # One that goes on from another of these is within that one's probability.
        nearest = [
            value
            for other, value in longer.items()
            if not any(goes_on(other, between) for between in longer)
        ]
        left = 1 - sum(math.exp(value - log_prob) for value in nearest)
        # Of two float32 sums the longer may come out above its own beginning.
        results.append(log_prob + math.log(max(left, torch.finfo(torch.float32).eps)))
    return results


def _check_length(model: TracedModel, rows: Sequence[Row], max_new_tokens: int) -> None:
    limit = model.context_length
    longest = max((len(row.token_ids) for row in rows), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise ContextLengthError(
            f"A prompt has {longest} tokens and {max_new_tokens} new ones are asked for; the "
            f"context of {model.name} is {limit}. Read fewer positions, or lower max_new_tokens."
        )


def _batches(
    model: TracedModel,
    rows: Sequence[Row],
    batch_size: int,
    max_new_tokens: int,
    description: str,
) -> Iterator[list[int]]:
    """Indices of rows that run together: one adapter, the same injection, like length."""
    _check_length(model, rows, max_new_tokens)
    groups: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.adapter, row.inject_layers), []).append(index)
    with tqdm(total=len(rows), desc=description, delay=SECONDS_BEFORE_PROGRESS, leave=False) as bar:
        for indices in groups.values():
            indices.sort(key=lambda i: len(rows[i].token_ids))
            for start in range(0, len(indices), batch_size):
                chunk = indices[start : start + batch_size]
                yield chunk
                bar.update(len(chunk))


@contextlib.contextmanager
def _writing(model: TracedModel, rows: Sequence[Row], length: int) -> Iterator[None]:
    """Writes the rows' vectors over the residual stream of a left-padded batch."""
    with contextlib.ExitStack() as stack:
        if rows[0].inject_layers:
            at_row, at_col, vectors = [], [], []
            for index, row in enumerate(rows):
                assert row.vectors is not None, "rows with inject_layers have vectors"
                padding = length - len(row.token_ids)
                at_row += [index] * len(row.places)
                at_col += [padding + place for place in row.places]
                vectors.append(row.vectors.float())
            injection = Injection(
                vectors=torch.cat(vectors),
                rows=torch.tensor(at_row, dtype=torch.long),
                cols=torch.tensor(at_col, dtype=torch.long),
                formula="replace",
            )
            for layer in rows[0].inject_layers:
                stack.enter_context(injecting(model.blocks[layer], injection))
        yield


@contextlib.contextmanager
def _seeded(model: TracedModel, sampling: Sampling | None) -> Iterator[None]:
    if sampling is None:
        yield
        return
    devices = [model.device] if model.device.type != "cpu" else []
    kind = model.device.type if devices else "cuda"
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(sampling.seed)
        yield
