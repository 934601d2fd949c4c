"""Prompts -> token ids, with the place of every token in the text.

The caller's tokenizer is never changed (no padding side, no added pad token): batches are padded
by hand, in `TracedModel`.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import ChatTemplateError, PromptError
from aotoolkit.tracing.messages import MessageSpan, message_spans

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]

# Arguments of `apply_chat_template` that are stated elsewhere, or would change what it returns.
_NOT_TEMPLATE_KWARGS = frozenset(
    {"add_generation_prompt", "chat_template", "conversation", "return_dict", "tokenize"}
)


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model sees it.

    Attributes:
        token_ids: s token ids.
        tokens: s strings, each token decoded alone.
        offsets: s pairs (start, end), character spans in `text`; (i, i) for a token that stands
            for no text of the prompt, such as a beginning-of-sequence token.
        text: the prompt after the chat template, or the decoded text of token ids.
        chat: whether a chat template made `text`.
        messages: where each message of a chat stands in `text`, in order (see `message_spans`).
            Empty for other prompts, and where a slow tokenizer has changed the text.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    text: str
    chat: bool
    messages: tuple[MessageSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


def ends_with_reply(prompt: Any) -> bool:
    """Whether a prompt is a chat whose last turn is the assistant's."""
    last = prompt[-1] if prompt else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def is_batch(prompt: Any) -> bool:
    """Whether `prompt` is a list of prompts, as against one prompt."""
    if isinstance(prompt, str | Mapping) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and (isinstance(prompt[0], str) or _is_sequence(prompt[0]))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | Mapping)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    add_generation_prompt: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    vocabulary_size: int,
) -> Encoded:
    """Tokenise one prompt; see `TracedModel.encode`."""
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt, chat=False)
    if not _is_sequence(prompt) or not prompt:
        raise PromptError(
            f"A prompt is a non-empty string, list of chat messages or list of token ids; got "
            f"{type(prompt).__name__} {str(prompt)[:80]!r}."
        )
    if all(isinstance(item, Mapping) for item in prompt):

        def render(messages: Sequence[Message], generation_prompt: bool) -> str:
            return render_chat(
                tokenizer,
                messages,
                add_generation_prompt=generation_prompt,
                chat_template_kwargs=chat_template_kwargs,
            )

        text = render(prompt, add_generation_prompt)  # type: ignore[arg-type]
        encoded = _encode_text(tokenizer, text, chat=True)
        if encoded.text != text:
            return encoded
        spans = message_spans(
            render,
            prompt,  # type: ignore[arg-type]
            add_generation_prompt=add_generation_prompt,
        )
        return dataclasses.replace(encoded, messages=spans)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        return _encode_ids(tokenizer, tuple(prompt), vocabulary_size)  # type: ignore[arg-type]
    kinds = sorted({type(item).__name__ for item in prompt})
    raise PromptError(
        f"A prompt in the form of a list holds either chat messages (dict) or token ids (int); "
        f"this one holds {', '.join(kinds)}."
    )


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text of a chat, by the tokenizer's own template.

    Args:
        tokenizer: with the template.
        messages: the chat.
        add_generation_prompt: whether the header of a reply follows it.
        chat_template_kwargs: for the template, such as `{"enable_thinking": False}`; a template
            ignores those that it does not know.

    Raises:
        ChatTemplateError: the tokenizer has no template.
        PromptError: a message without role or content, one that the template refuses, or an
            argument that is none of the template's.
    """
    template_kwargs = dict(chat_template_kwargs or {})
    if taken := sorted(_NOT_TEMPLATE_KWARGS & set(template_kwargs)):
        raise PromptError(
            f"chat_template_kwargs has {taken[0]!r}, which is no argument of the template. Give "
            "what the template itself asks for, such as enable_thinking."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError(
            f"Chat messages were given, but the tokenizer {tokenizer.name_or_path!r} has no chat "
            "template. Give the prompt as a string, or set tokenizer.chat_template."
        )
    for index, message in enumerate(messages):
        if "role" not in message or not isinstance(message.get("content"), str):
            raise PromptError(
                f"Chat message {index} is {dict(message)!r}; expected a dict with the strings "
                "'role' and 'content'."
            )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **template_kwargs,
        )
    except jinja2.TemplateError as error:
        raise PromptError(
            f"The chat template of {tokenizer.name_or_path!r} refused the messages: {error}. "
            "Check the roles and their order."
        ) from error
    assert isinstance(text, str)
    return text


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the template text, so that activations say how their chat was rendered."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> Encoded:
    # A rendered chat holds its own special tokens; a plain text gets the tokenizer's.
    special = not chat
    if tokenizer.is_fast:
        encoding = tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=special, verbose=False
        )
        token_ids = tuple(encoding["input_ids"])  # type: ignore[arg-type]
        offsets = tuple((start, end) for start, end in encoding["offset_mapping"])  # type: ignore[union-attr]
    else:
        token_ids = tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])  # type: ignore[arg-type]
        text, offsets = _decoded_offsets(tokenizer, token_ids)
    if not token_ids:
        raise PromptError(f"The prompt {text!r} has no tokens. Give a prompt with text in it.")
    return Encoded(
        token_ids=token_ids,
        tokens=_token_strings(tokenizer, token_ids),
        offsets=offsets,
        text=text,
        chat=chat,
    )


def _encode_ids(
    tokenizer: PreTrainedTokenizerBase, token_ids: tuple[int, ...], vocabulary_size: int
) -> Encoded:
    unknown = sorted({i for i in token_ids if not 0 <= i < vocabulary_size})
    if unknown:
        raise PromptError(
            f"Token ids {unknown[:5]} are outside the model's vocabulary (0 to "
            f"{vocabulary_size - 1}). Were they made by another model's tokenizer?"
        )
    text, offsets = _decoded_offsets(tokenizer, token_ids)
    return Encoded(
        token_ids=token_ids,
        tokens=_token_strings(tokenizer, token_ids),
        offsets=offsets,
        text=text,
        chat=False,
    )


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def _token_strings(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, ...]:
    decoded = {token_id: _decode(tokenizer, [token_id]) for token_id in set(token_ids)}
    return tuple(decoded[token_id] for token_id in token_ids)


def _decoded_offsets(
    tokenizer: PreTrainedTokenizerBase, token_ids: tuple[int, ...]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The decoded text, and where each token stands in it."""
    text = _decode(tokenizer, token_ids)
    pieces = _token_strings(tokenizer, token_ids)
    if "".join(pieces) == text:
        ends = list(itertools.accumulate(map(len, pieces)))
    else:
        # Tokens that are parts of one character, or a decoder that joins words by rules: how far
        # the text goes after each prefix. An unfinished character decodes to U+FFFD, which does
        # not count before the token that finishes it.
        ends, reached = [], 0
        for end in range(1, len(token_ids) + 1):
            prefix = _decode(tokenizer, token_ids[:end])
            if end < len(token_ids):
                prefix = prefix.rstrip("\ufffd")
            reached = min(max(reached, len(prefix)), len(text))
            ends.append(reached)
    return text, tuple(itertools.pairwise([0, *ends]))
