"""A context as a target model sees it, and where a turn of a chat begins in it.

Chat templates differ in what they write around a message, and some write it another way when more
messages follow (Qwen3 drops thoughts, Gemma puts the system prompt into the user's turn). So a
turn is found by rendering the chat with a mark in place of one message, and then by character
offsets: never by token ids, which messages may hold too.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import DataError, PromptError
from aotoolkit.tracing.encoding import encode, render_chat
from aotoolkit.tracing.messages import unused_mark

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Context:
    """Token ids and where each stands in the text.

    Attributes:
        token_ids: s token ids; those that `TracedModel.encode` gives.
        offsets: s pairs (start, end), character spans in `text`.
        text: the text, after the chat template where there is one.
    """

    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    text: str

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def first_readable(self) -> int:
        """Position 1, where there is one.

        At the first token of any context models keep a vector of huge norm that says nothing about
        the text (LatentQA leaves it out as well).
        """
        return min(1, len(self) - 1)

    def first_from(self, character: int) -> int:
        """Position of the first readable token that begins at or after a character.

        Raises:
            DataError: there is none.
        """
        for position in range(self.first_readable, len(self)):
            start, end = self.offsets[position]
            if start >= character and end > start:
                return position
        raise DataError(
            f"No token stands after character {character} of the context {self.text[-80:]!r}, so "
            "there is nothing to read there."
        )


def encode_context(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> Context:
    """Tokenise a text (with the tokenizer's special tokens) or a chat (rendered).

    Raises:
        PromptError, ChatTemplateError: see `TracedModel.encode`.
        DataError: a slow tokenizer, which gives no character offsets, that does not give back the
            text that it was given.
    """
    chat = not isinstance(prompt, str)
    text = prompt
    if not isinstance(prompt, str):
        text = render_chat(tokenizer, prompt, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    if tokenizer.is_fast:
        # As `tracing.encode`, without the text of each token, which takes most of its time.
        encoding = tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=not chat, verbose=False
        )
        offsets = tuple((start, end) for start, end in encoding["offset_mapping"])  # type: ignore[union-attr]
        context = Context(tuple(encoding["input_ids"]), offsets, text)  # type: ignore[arg-type]
    else:
        encoded = encode(
            tokenizer,
            prompt,
            add_generation_prompt=add_generation_prompt,
            vocabulary_size=len(tokenizer),
        )
        if chat and encoded.text != text:
            raise DataError(
                f"The tokenizer {tokenizer.name_or_path!r} gives no character offsets and changes "
                "the text, so turns cannot be found. Use the fast tokenizer of the same model."
            )
        context = Context(encoded.token_ids, encoded.offsets, encoded.text)
    if not context.token_ids:
        raise PromptError(f"The context {text!r} has no tokens. Give a text that is not empty.")
    return context


def turn_start(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    turn: int,
    *,
    add_generation_prompt: bool = False,
) -> int:
    """The character of the rendered chat at which a turn begins, with its header.

    Where the template merges a turn into the one before it, it begins with its content.

    Args:
        tokenizer: with a chat template.
        messages: the whole chat.
        turn: index of a message; 0 begins at the first character.
        add_generation_prompt: as the chat is rendered.

    Raises:
        DataError: the template writes the earlier turns in an order, or a way, that depends on
            this turn's content.
        PromptError, ChatTemplateError: see `TracedModel.encode`.
    """
    if not 0 <= turn < len(messages):
        raise DataError(f"There is no turn {turn} in a chat of {len(messages)} messages.")
    if turn == 0:
        return 0

    def render(count: int, marked: int, generation_prompt: bool) -> str:
        chat = [dict(message) for message in messages[:count]]
        chat[marked]["content"] = mark
        return render_chat(tokenizer, chat, add_generation_prompt=generation_prompt)

    text = render_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    mark = unused_mark(text)
    before, found, _ = render(len(messages), turn, add_generation_prompt).partition(mark)
    _, found_previous, after = render(len(messages), turn - 1, add_generation_prompt).rpartition(
        mark
    )
    content_start, previous_end = len(before), len(text) - len(after)
    if (
        not (found and found_previous and text.startswith(before) and text.endswith(after))
        or previous_end > content_start
    ):
        raise DataError(
            f"The chat template of {tokenizer.name_or_path!r} does not write turns {turn - 1} and "
            f"{turn} one after the other, so it cannot be said where turn {turn} begins. Give a "
            "tokenizer with another chat_template."
        )
    # Between the two contents: what closes the previous turn, then this turn's header.
    between = text[previous_end:content_start]
    try:
        _, found, closing = render(turn, turn - 1, False).rpartition(mark)
    except PromptError:  # a template that wants a user's turn, or one at the end
        return content_start
    pairs = zip(between, closing, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if not found or (closing and not shared):
        return content_start
    return previous_end + shared


def render_unfinished(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text of a chat up to where its last message ends, without what closes the turn.

    A model that was stopped in the middle of a reply has never read the end of that turn.

    Raises:
        DataError: the template writes something else where the last message's content changes.
        PromptError, ChatTemplateError: see `TracedModel.encode`.
    """
    text = render_chat(tokenizer, messages, add_generation_prompt=False)
    mark = unused_mark(text)
    marked = [*messages[:-1], {**messages[-1], "content": mark}]
    rendered = render_chat(tokenizer, marked, add_generation_prompt=False)
    _, found, closing = rendered.rpartition(mark)
    if not found or not text.endswith(closing):
        raise DataError(
            f"The chat template of {tokenizer.name_or_path!r} does not close every reply alike, so "
            "it cannot be said where an unfinished one ends. Give a tokenizer with another "
            "chat_template, or leave unfinished replies out."
        )
    return text.removesuffix(closing)


def is_text(value: object) -> bool:
    """Whether a value from a file is a text with something in it, which a tokenizer can read.

    JSON may hold half of a surrogate pair, which is no character.
    """
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
