"""Choose tokens of a prompt: by hand in the notebook, or by code.

The selection counts among the tokens that are shown, as `Activations[...]` does, so that
`acts[tokens.selection]` are the activations of what was chosen.
"""

import bisect
import html
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import traitlets as t

from aotoolkit.errors import PositionError
from aotoolkit.widgets.base import FrontEnd, front_end, short, style_sheet, visible

if TYPE_CHECKING:
    from aotoolkit.tracing import Activations, Encoded, MessageSpan

GRANULARITIES = ("token", "word", "message")
REST_OF_CHARACTER = "‥"


class TokenSelect(FrontEnd):
    """The tokens of a prompt, grouped by message, of which some are selected.

    Drag over tokens, or use the keyboard: arrows move, Shift with arrows, Home or End extends,
    Space toggles, Ctrl+A selects all, Escape none. Shift and click extends, Ctrl and click (or
    drag) adds or takes away.

    Attributes:
        tokens: what is shown, one string for each token.
        special: tokens of the chat template, by place; they are set apart.
        selection: what is selected, by place, in order and each once.
        roles: `[role, start, stop]` for each message, `stop` excluded; empty without messages.
        scores: a number for each token (None: not known), shown as a strip under the tokens; or
            empty.
        score_label: what the numbers are.
        max_positions: how many tokens may be selected; None for any number.
        granularity: what a gesture takes: "token", "word" or "message".
        disabled: whether the selection is fixed.
    """

    _esm = front_end("token_select")
    _css = style_sheet("token_select")

    tokens = t.List(t.Unicode()).tag(sync=True)
    special = t.List(t.Int()).tag(sync=True)
    selection = t.List(t.Int()).tag(sync=True)
    roles = t.List(t.List()).tag(sync=True)
    scores = t.List(t.Float(allow_none=True)).tag(sync=True)
    score_label = t.Unicode("score").tag(sync=True)
    label = t.Unicode("Tokens of the prompt").tag(sync=True)
    disabled = t.Bool(False).tag(sync=True)
    max_positions = t.Int(None, allow_none=True).tag(sync=True)
    granularity = t.Enum(GRANULARITIES, "token").tag(sync=True)

    _TOGETHER = ("tokens", "special", "selection", "roles", "scores", "max_positions")
    # The text that the tokens are of, and where: a character may be split over several tokens.
    _text: str | None = None
    _offsets: Sequence[tuple[int, int]] = ()

    @classmethod
    def from_activations(cls, activations: "Activations", **options: Any) -> Self:
        """The tokens that activations were read at.

        Args:
            activations: a place of the selection is one of `activations[...]`.
            **options: other traits, such as `max_positions`.
        """
        return cls._of(activations, options)

    @classmethod
    def from_prompt(cls, encoded: "Encoded", **options: Any) -> Self:
        """The tokens of a prompt, as `TracedModel.encode` gives it.

        Args:
            encoded: the whole prompt.
            **options: other traits, such as `max_positions`.
        """
        return cls._of(encoded, options)

    @classmethod
    def _of(cls, source: "Activations | Encoded", options: dict[str, Any]) -> Self:
        made = cls()
        made.show(source, **options)
        return made

    def show(self, source: "Activations | Encoded", **options: Any) -> None:
        """Show other tokens, of which none is selected.

        Args:
            source: activations, or what `TracedModel.encode` returned.
            **options: other traits, such as `scores`.

        Raises:
            traitlets.TraitError: an option does not fit the tokens; nothing is changed.
        """
        values = {
            "tokens": _shown_tokens(source.tokens, source.offsets, source.text),
            "special": _template_tokens(source.offsets, source.messages),
            "roles": _message_ranges(source.offsets, source.messages, len(source.text)),
            "selection": [],
            "scores": [],
        }
        with self.hold_sync():
            self._set_together(values | options)
        self._text, self._offsets = source.text, source.offsets

    def _set_together(self, values: dict[str, Any]) -> None:
        """Set traits that only fit one another, or none of them."""
        with self.hold_trait_notifications():
            for name, value in values.items():
                self.set_trait(name, value)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The selection as half-open ranges of neighbours."""
        return to_ranges(self.selection)

    @property
    def text(self) -> str:
        """The selected text; ` … ` stands where tokens are left out."""
        if not self._offsets:
            pieces = ("".join(self.tokens[start:stop]) for start, stop in self.ranges)
        else:
            assert self._text is not None
            # Activations may hold a part of the prompt: neighbours here need not be so in the text.
            spans: list[tuple[int, int]] = []
            for a, b in self.ranges:
                spans.append(self._offsets[a])
                for start, end in self._offsets[a + 1 : b]:
                    begin, stop = spans[-1]
                    if start >= begin and not self._text[stop:start].strip():
                        spans[-1] = (begin, max(end, stop))
                    else:
                        spans.append((start, end))
            pieces = (self._text[start:end] for start, end in spans)
        return " … ".join(pieces)

    def select(
        self,
        what: "int | slice | Iterable[int] | re.Pattern[str] | str",
        *,
        template: bool = False,
        add: bool = False,
    ) -> Self:
        """Select tokens by place, by a regular expression, or by role.

        Args:
            what: a place (negative: from the end), a slice, several places, a compiled regular
                expression (every token that a match touches), or a role such as "assistant".
            template: for a role, whether the tokens of the chat template belong to it.
            add: whether what is selected already stays selected.

        Returns:
            This widget.

        Raises:
            PositionError: a place out of range, or nothing left.
            traitlets.TraitError: more than `max_positions`.
        """
        if isinstance(what, str):
            chosen = self._of_role(what, template=template)
        elif isinstance(what, re.Pattern):
            chosen = self._matched(what)
        else:
            chosen = self._places(what)
        self.selection = sorted({*chosen, *(self.selection if add else ())})
        return self

    def _of_role(self, role: str, *, template: bool) -> list[int]:
        known = list(dict.fromkeys(name for name, _, _ in self.roles))
        if role not in known:
            raise PositionError(
                f"No message has the role {role!r}; the roles are {known}. To find a text, give a "
                "regular expression: select(re.compile(...))."
            )
        left_out = set() if template else set(self.special)
        chosen = [
            place
            for name, start, stop in self.roles
            if name == role
            for place in range(start, stop)
            if place not in left_out
        ]
        if not chosen:
            raise PositionError(
                f"All tokens of {role!r} here are of the chat template. Give template=True to "
                "select them."
            )
        return chosen

    def _matched(self, pattern: "re.Pattern[str]") -> list[int]:
        if self._offsets:
            assert self._text is not None
            text, offsets = self._text, self._offsets
        else:
            text = "".join(self.tokens)
            ends = list(itertools.accumulate(map(len, self.tokens)))
            offsets = list(itertools.pairwise([0, *ends]))
        touched = bytearray(len(text))
        for match in pattern.finditer(text):
            touched[match.start() : match.end()] = b"\1" * (match.end() - match.start())
        chosen = [i for i, (start, end) in enumerate(offsets) if any(touched[start:end])]
        if not chosen:
            raise PositionError(
                f"No token is touched by a match of {pattern.pattern!r} in {text[:80]!r}."
            )
        return chosen

    def _places(self, what: int | slice | Iterable[int]) -> list[int]:
        count = len(self.tokens)
        if isinstance(what, slice):
            chosen = list(range(count)[what])
        else:
            given = [what] if isinstance(what, int) else list(what)
            outside = [place for place in given if not -count <= place < count]
            if outside:
                raise PositionError(
                    f"Place {outside[0]} is out of range: there are {count} tokens "
                    f"(0 to {count - 1}, or -{count} to -1)."
                )
            chosen = [int(place) % count for place in given]
        if not chosen:
            raise PositionError(
                f"{what!r} of {count} tokens is empty. To select nothing, set selection = []."
            )
        return chosen

    @t.validate(*_TOGETHER)
    def _fits(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name in ("selection", "special"):
            value = sorted(set(value))
        values = {trait: getattr(self, trait) for trait in self._TOGETHER} | {name: value}
        _refuse_misfits(values)
        return value

    @t.observe("tokens")
    def _forget_text(self, _change: Any) -> None:
        self._text, self._offsets = None, ()

    def static_html(self) -> str:
        """The tokens with the selection marked, and said in words for where marks are lost."""
        chosen = set(self.selection)
        lines = []
        for role, start, stop in self._groups():
            marked = itertools.groupby(range(start, stop), key=chosen.__contains__)
            pieces = []
            for selected, places in marked:
                shown = "".join(html.escape(visible(self.tokens[i])) for i in places)
                pieces.append(f"<mark>{shown}</mark>" if selected else shown)
            name = f"<b>{html.escape(role)}</b><br>" if role else ""
            code = "".join(pieces).replace("⏎", "⏎<br>").removesuffix("<br>")
            lines.append(f"<p>{name}<code>{code}</code></p>")
        return (
            f"<div><p><b>{html.escape(self.label)}</b></p>{''.join(lines)}"
            f"<p>{html.escape(self._said())}</p></div>"
        )

    def _groups(self) -> list[tuple[str, int, int]]:
        """The messages, and without a role what stands between them."""
        groups, shown = [], 0
        for role, start, stop in [*self.roles, ["", len(self.tokens), len(self.tokens)]]:
            if shown < start:
                groups.append(("", shown, start))
            if start < stop:
                groups.append((role, start, stop))
            shown = stop
        return groups

    def _said(self) -> str:
        if not self.selection:
            return f"None of {len(self.tokens)} tokens selected."
        places = ", ".join(str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in self.ranges)
        return f"{len(self.selection)} of {len(self.tokens)} tokens selected: {places}."

    def __repr__(self) -> str:
        return f"TokenSelect({self._said().removesuffix('.')})"


def to_ranges(places: Iterable[int]) -> list[tuple[int, int]]:
    """Half-open ranges of neighbours: [2, 3, 4, 9] -> [(2, 5), (9, 10)]."""
    ranges: list[tuple[int, int]] = []
    for place in sorted(set(places)):
        if ranges and ranges[-1][1] == place:
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
    return ranges


def _shown_tokens(
    tokens: Sequence[str], offsets: Sequence[tuple[int, int]], text: str
) -> list[str]:
    """Tokens as they are shown: a character that is split over several stands in the first."""
    shown, end_shown = [], 0
    for token, (start, end) in zip(tokens, offsets, strict=True):
        whole = text[start:end]
        if "\ufffd" in token and "\ufffd" not in whole:
            token = text[max(start, end_shown) : end] or REST_OF_CHARACTER
        shown.append(token)
        end_shown = end
    return shown


def _template_tokens(
    offsets: Sequence[tuple[int, int]], messages: Sequence["MessageSpan"]
) -> list[int]:
    """Tokens that hold nothing of a message's content, or stand for no text of the prompt."""
    if not messages:
        return [place for place, (start, end) in enumerate(offsets) if start == end]
    contents = [(message.content_start, message.content_end) for message in messages]
    return [
        place
        for place, (start, end) in enumerate(offsets)
        if not any(start < stop and begin < end for begin, stop in contents)
    ]


def _message_ranges(
    offsets: Sequence[tuple[int, int]], messages: Sequence["MessageSpan"], length: int
) -> list[list[Any]]:
    """Which tokens belong to which message: those that begin in it."""
    if not messages:
        return []
    bounds = [(message.role, message.start, message.end) for message in messages]
    if bounds[-1][2] < length:
        # What follows the last message is the header of the reply to come.
        bounds.append(("assistant", bounds[-1][2], length))
    # By runs, since activations may have been read at positions in any order.
    ends = [end for _, _, end in bounds]
    runs = itertools.groupby(
        range(len(offsets)), key=lambda place: bisect.bisect_right(ends, offsets[place][0])
    )
    ranges = []
    for index, places in runs:
        first, *rest = places
        if index < len(bounds):
            ranges.append([bounds[index][0], first, (rest or [first])[-1] + 1])
    return ranges


def _refuse_misfits(values: dict[str, Any]) -> None:
    """Refuse traits that do not fit the tokens, instead of clipping them silently."""
    count = len(values["tokens"])
    allowed = f"(valid positions are 0 to {count - 1})" if count else "(it has none)"
    for name in ("selection", "special"):
        chosen = values[name]
        if any(not 0 <= place < count for place in chosen):
            raise t.TraitError(
                f"{name} {short(chosen)} does not fit a prompt of {count} tokens {allowed}"
            )
    cap = values["max_positions"]
    if cap is not None and cap < 1:
        raise t.TraitError(f"max_positions is {cap}; give 1 or more, or None for any number")
    if cap is not None and len(values["selection"]) > cap:
        raise t.TraitError(
            f"selection of {len(values['selection'])} tokens is more than max_positions allows "
            f"({cap}); select fewer, or raise max_positions"
        )
    scores = values["scores"]
    if scores and len(scores) != count:
        raise t.TraitError(
            f"scores has {len(scores)} numbers for {count} tokens; give one for each token, None "
            "where it is not known, or an empty list"
        )
    if any(score is not None and not math.isfinite(score) for score in scores):
        raise t.TraitError("scores holds NaN or infinity; give None where a score is not known")
    end = 0
    for group in values["roles"]:
        fits = len(group) == 3 and isinstance(group[0], str)
        if not (fits and all(isinstance(n, int) for n in group[1:]) and end <= group[1] < group[2]):
            raise t.TraitError(
                f"roles has {short(group)}; give [role, start, stop] for each message, in order "
                "and without overlap"
            )
        end = group[2]
    if end > count:
        raise t.TraitError(f"roles go up to token {end}, but the prompt has {count} tokens")
