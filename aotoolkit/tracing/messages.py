"""Where each message of a chat stands in the text that the chat template made of it.

Templates differ in what they write around a message, trim it, drop thoughts, or put the system
prompt into the user's turn. So a message is found by rendering the chat with a mark in its place
and comparing the two texts: never by its words, which may stand elsewhere too, and never by names
of control tokens.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aotoolkit.errors import PromptError


@dataclass(frozen=True, slots=True)
class MessageSpan:
    """Characters of a rendered chat that belong to one message.

    Attributes:
        role: as the caller named it.
        start: where the message begins, with its header; the first begins at 0.
        content_start: where its content begins, as the template wrote it.
        content_end: where its content ends.
        end: where the message ends, with what closes the turn.
    """

    role: str
    start: int
    content_start: int
    content_end: int
    end: int


def message_spans(
    render: Callable[[Sequence[Mapping[str, Any]], bool], str],
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
) -> tuple[MessageSpan, ...]:
    """The span of each message, in order.

    A message that the template does not write exactly once, or not after those before it, has no
    span. Nor has the header of a reply that is still to come: it follows the last span.

    Args:
        render: messages and whether a reply's header follows them -> the text.
        messages: the whole chat.
        add_generation_prompt: as the chat is rendered.
    """
    text = render(messages, add_generation_prompt)
    mark = unused_mark(text)

    def around(index: int, count: int, generation_prompt: bool) -> tuple[str, str] | None:
        """What the template writes before and after one of the first `count` messages."""
        marked = [*messages[:count]]
        marked[index] = {**marked[index], "content": mark}
        try:
            before, *after = render(marked, generation_prompt).split(mark)
        except PromptError:  # the template refuses the mark, or a chat that ends here
            return None
        return (before, after[0]) if len(after) == 1 else None

    contents: list[tuple[int, int, int]] = []
    for index in range(len(messages)):
        found = around(index, len(messages), add_generation_prompt)
        if found is None:
            continue
        start = _common_length(text, found[0])
        end = max(start, len(text) - _common_length(reversed(text), reversed(found[1])))
        if not contents or start >= contents[-1][2]:
            contents.append((index, start, end))

    spans: list[MessageSpan] = []
    for (index, start, end), following in itertools.zip_longest(contents, contents[1:]):
        limit = following[1] if following else len(text)
        closing = around(index, index + 1, False)
        shared = _common_length(text[end:limit], closing[1]) if closing else 0
        # Where the next content follows in the same turn, no header is told from what closes.
        joined = following is not None and (closing is None or (bool(closing[1]) and not shared))
        spans.append(
            MessageSpan(
                role=messages[index]["role"],
                start=spans[-1].end if spans else 0,
                content_start=start,
                content_end=end,
                end=limit if joined else end + shared,
            )
        )
    return tuple(spans)


def unused_mark(text: str) -> str:
    """Something that does not stand in a text."""
    mark = "\ue000"
    while mark in text:
        mark += "\ue001"
    return mark


def _common_length(one: Iterable[str], other: Iterable[str]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
