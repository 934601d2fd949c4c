"""On-policy texts: what the target model itself writes, to make examples of.

What a model reads most, once it is in use, is its own replies. Oracles trained on them rather than
on web text answer better ("Building Better Activation Oracles", arXiv 2606.02609). The model
continues prompts, and its texts are written to a .jsonl file that is then read like any other.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aotoolkit.data.model_texts import (
    check_settings,
    decode,
    sample_ids,
    settings_path,
    write_in_batches,
)
from aotoolkit.data.source import group_rng
from aotoolkit.data.texts import TextSpec, describe_texts, naming_row, read_texts, text_ids
from aotoolkit.errors import DataError
from aotoolkit.tracing.encoding import Message, render_chat
from aotoolkit.tracing.model import TracedModel


@dataclass(frozen=True, kw_only=True)
class OnPolicyTexts:
    """Which texts the target model is to write.

    Attributes:
        prompts: what is continued. A chat is cut after one of its user turns, drawn at random, and
            replied to; a plain text is continued after its first tokens.
        num_texts: how many to write, each from a prompt of its own.
        prefix_tokens: least and most tokens of a plain text that are given.
        max_prompt_tokens: chats that are longer, cut as they are, are passed over.
        max_new_tokens: the most that is written. A reply that is longer is cut off there, and read
            without what would close its turn.
        temperature: of sampling, in the model's own distribution without top-k or top-p; 0 takes
            the likeliest token each time.
        seed: of the prompts' cuts and of sampling. Each text has a generator of its own.
        batch_size: prompts in one forward.
        chat_template_kwargs: given to the chat template where a reply is asked for, such as
            `enable_thinking: false`, and kept with each chat, so that it is read with them too.
            The template writes the chat anew then, so thoughts that it drops should not be asked
            for.
    """

    prompts: TextSpec
    num_texts: int
    prefix_tokens: tuple[int, int] = (16, 128)
    max_prompt_tokens: int = 256
    max_new_tokens: int = 200
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for setting in ("num_texts", "max_prompt_tokens", "max_new_tokens", "batch_size"):
            if getattr(self, setting) < 1:
                raise DataError(f"{setting} is {getattr(self, setting)}; expected at least 1.")
        if not 1 <= self.prefix_tokens[0] <= self.prefix_tokens[1]:
            raise DataError(
                f"prefix_tokens is {self.prefix_tokens}; expected the least and the most, each at "
                "least 1."
            )
        if self.temperature < 0:
            raise DataError(f"temperature is {self.temperature}; expected 0 or more.")


@dataclass(frozen=True)
class _Prompt:
    """One prompt: what is kept of it in the file, and the token ids that are continued."""

    messages: tuple[Message, ...] | None
    token_ids: tuple[int, ...]


def rollouts(
    model: TracedModel, request: OnPolicyTexts, path: str | Path, *, progress: bool = True
) -> TextSpec:
    """Let the base of `model`, every adapter off, write texts to a .jsonl file.

    Each row has `messages` (a chat with the reply at its end, and the `chat_template_kwargs` that
    were asked for) or `text` (the beginning and its continuation), and `finished`: whether the
    model ended by itself. The file is there once it is
    whole. Until then its rows are in `<path>.partial`, and a run that was killed goes on there, at
    the last whole batch. `<path>.settings.json` says what was asked for and of which model.

    Two runs with the same settings write the same file, killed or not. With another batch size or
    on another machine, texts differ where rounding tips a draw.

    Returns:
        Where the texts are, for any source that reads texts.

    Raises:
        DataError: too few prompts, a prompt and its reply do not fit in the model's context, or
            `path` holds, or was begun with, texts of other settings.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise DataError(f"Texts are written as .jsonl; {path.name!r} has another suffix.")

    def prompts() -> list[_Prompt]:
        found = list(_prompts(model, request))
        if len(found) < request.num_texts:
            raise DataError(
                f"{request.num_texts} texts are asked for, but {str(request.prompts.data)!r} has "
                f"only {len(found)} prompts that fit. Lower num_texts, raise max_prompt_tokens "
                "or lower prefix_tokens, or give more prompts."
            )
        return found

    write_in_batches(
        path,
        prompts,
        lambda start, batch: _continue(model, request, start, batch),
        settings=_settings(request, model),
        batch_size=request.batch_size,
        progress=progress,
    )
    return TextSpec(data=path)


def check_rollouts(
    request: OnPolicyTexts, path: str | Path, *, model: TracedModel | None = None
) -> None:
    """Refuses texts that `rollouts` wrote, whole or in part, for another request.

    Texts that do not say what they were written for, such as a file of the caller's own, pass.

    Args:
        request: what is wanted.
        path: of the texts.
        model: which model is to have written them; not looked at by default.

    Raises:
        DataError: they were written with other settings, or by another model.
    """
    path = Path(path)
    if settings_path(path).exists():
        check_settings(path, _settings(request, model))


def _prompts(model: TracedModel, request: OnPolicyTexts) -> Iterator[_Prompt]:
    """The first `num_texts` prompts that fit."""
    every = _every_prompt(model, request)
    longest = max(request.max_prompt_tokens, request.prefix_tokens[1]) + request.max_new_tokens
    limit = model.context_length
    if limit is not None and longest > limit:
        raise DataError(
            f"A prompt and {request.max_new_tokens} new tokens may have {longest} tokens, but the "
            f"context of {model.name} is {limit}. Lower max_new_tokens, max_prompt_tokens or "
            "prefix_tokens."
        )
    return itertools.islice(every, request.num_texts)


def _every_prompt(model: TracedModel, request: OnPolicyTexts) -> Iterator[_Prompt]:
    tokenizer = model.tokenizer
    for record in read_texts(request.prompts):
        rng = group_rng(request.seed, "prompt", record.row)
        if isinstance(record.content, str):
            length = rng.randint(*request.prefix_tokens)
            ids = text_ids(tokenizer, record.content, max_length=length)
            if len(ids) == length:
                yield _Prompt(None, ids)
            continue
        ends = [i + 1 for i, turn in enumerate(record.content) if turn["role"] == "user"]
        if not ends:
            continue
        messages = record.content[: rng.choice(ends)]
        with naming_row(request.prompts, record):
            text = render_chat(
                tokenizer,
                messages,
                add_generation_prompt=True,
                chat_template_kwargs=request.chat_template_kwargs,
            )
        ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]
        if len(ids) <= request.max_prompt_tokens:
            yield _Prompt(messages, ids)


def _continue(
    model: TracedModel, request: OnPolicyTexts, start: int, prompts: Sequence[_Prompt]
) -> Iterator[dict[str, Any]]:
    """One row of the file for each prompt; `start` is the index of the first."""
    generators = [group_rng(request.seed, "sampling", start + row) for row in range(len(prompts))]
    written = sample_ids(
        model,
        [prompt.token_ids for prompt in prompts],
        generators,
        temperature=request.temperature,
        max_new_tokens=request.max_new_tokens,
    )
    for prompt, (ids, finished) in zip(prompts, written, strict=True):
        if prompt.messages is None:
            row: dict[str, Any] = {"text": decode(model, [*prompt.token_ids, *ids])}
        else:
            reply = {"role": "assistant", "content": decode(model, ids)}
            row = {"messages": [*prompt.messages, reply]}
            if request.chat_template_kwargs:
                row["chat_template_kwargs"] = dict(request.chat_template_kwargs)
        yield {**row, "finished": finished}


def _settings(request: OnPolicyTexts, model: TracedModel | None) -> dict[str, Any]:
    settings = asdict(request) | {"prompts": describe_texts(request.prompts)}
    if model is not None:
        settings |= {"model": model.name, "base_digest": model.base_digest}
    return json.loads(json.dumps(settings))  # tuples become lists, as they will in the file
