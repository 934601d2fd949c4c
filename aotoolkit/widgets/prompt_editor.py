"""A prompt as a user writes it: turns of a chat, or one plain text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets as t

from aotoolkit.widgets.panel import close_all

if TYPE_CHECKING:
    from aotoolkit.tracing.encoding import Message

ROLES = ("system", "user", "assistant")
_LABEL = {"description_width": "3em"}
_WIDE = {"width": "auto", "flex": "1 1 auto"}


class PromptEditor(ipywidgets.VBox):
    """Turns that can be written, added and removed; `value` is the prompt.

    Attributes:
        kind: Chat or plain text; a panel places it where it likes, and so with `add`.
        add: Adds a turn.
        value: Chat messages, or the plain text; a new object after each change, so that it can be
            observed. Turns without text are no part of it.
    """

    value = t.Any()

    def __init__(self, prompt: "str | Sequence[Message]", *, can_chat: bool = True) -> None:
        """Shows a prompt.

        Args:
            prompt: What stands there at first.
            can_chat: Whether the model has a chat template.
        """
        self._filling = False
        self.kind = ipywidgets.ToggleButtons(
            options=["Chat", "Plain text"],
            tooltips=["Turns, put together by the chat template", "One text, as it stands"],
            tooltip="Kind of prompt",
            style={"button_width": "7em"},
            disabled=not can_chat,
        )
        self.add = ipywidgets.Button(
            description="Add turn",
            icon="plus",
            tooltip="Add a turn to the chat",
            layout={"width": "auto"},
        )
        self.text = ipywidgets.Textarea(
            description="Text", style=_LABEL, rows=3, continuous_update=False, layout=_WIDE
        )
        self._turns: list[_Turn] = []
        self._body = ipywidgets.VBox()
        self.text.observe(self._changed, names="value")
        self.kind.observe(self._switched, names="value")
        self.add.on_click(lambda _: self.add_turn(self._next_role(), ""))
        super().__init__([self._body])
        self.show(prompt)

    def show(self, prompt: "str | Sequence[Message]") -> None:
        """Replaces what stands there."""
        self._filling = True
        before = self._turns
        try:
            if isinstance(prompt, str):
                self.kind.value, self.text.value = "Plain text", prompt
            else:
                self.kind.value = "Chat"
                self._turns = [self._turn(m["role"], m["content"]) for m in prompt]
        finally:
            self._filling = False
        self._lay_out()
        if self._turns is not before:
            for turn in before:
                close_all(turn)
        self._changed()

    def add_turn(self, role: str, content: str) -> None:
        """Adds a turn at the end; a blank last one is replaced."""
        if self._turns and not self._turns[-1].content.value.strip():
            close_all(self._turns.pop())
        self._turns.append(self._turn(role, content))
        self._lay_out()
        self._changed()

    def remove_turn(self, place: int) -> None:
        """Takes a turn away."""
        close_all(self._turns.pop(place))
        self._lay_out()
        self._changed()

    def append_reply(self, reply: str) -> None:
        """Puts what the model said after the prompt."""
        if self.kind.value == "Chat":
            self.add_turn("assistant", reply)
        else:
            self.text.value += reply

    @property
    def turns(self) -> tuple[tuple[ipywidgets.Dropdown, ipywidgets.Textarea], ...]:
        """The controls of each turn: role and text."""
        return tuple((turn.role, turn.content) for turn in self._turns)

    def _turn(self, role: str, content: str) -> "_Turn":
        return _Turn(
            role,
            content,
            on_change=self._changed,
            on_remove=lambda turn: self.remove_turn(self._turns.index(turn)),
        )

    def _next_role(self) -> str:
        return "assistant" if self._turns and self._turns[-1].role.value == "user" else "user"

    def _switched(self, _change: Any) -> None:
        if self._filling:
            return
        # What was written is taken along as far as it can be.
        if self.kind.value == "Plain text" and not self.text.value:
            self._filling = True
            self.text.value = "\n".join(turn.content.value for turn in self._turns)
            self._filling = False
        elif self.kind.value == "Chat" and not self._turns:
            self._turns = [self._turn("user", self.text.value)]
        self._lay_out()
        self._changed()

    def _lay_out(self) -> None:
        chat = self.kind.value == "Chat"
        self._body.children = self._turns if chat else [self.text]
        self.add.disabled = not chat

    def _changed(self, _change: Any = None) -> None:
        if self._filling:
            return
        if self.kind.value == "Plain text":
            self.value = self.text.value
        else:
            self.value = [
                {"role": turn.role.value, "content": turn.content.value}
                for turn in self._turns
                if turn.content.value.strip()
            ]


class _Turn(ipywidgets.HBox):
    """One turn of a chat."""

    def __init__(
        self,
        role: str,
        content: str,
        *,
        on_change: Callable[[Any], None],
        on_remove: Callable[["_Turn"], None],
    ) -> None:
        # A template may know roles of its own, such as "tool".
        roles = [*ROLES] if role in ROLES else [*ROLES, role]
        self.role = ipywidgets.Dropdown(
            options=roles,
            value=role,
            description="Role",
            style={"description_width": "5em"},
            layout={"width": "15em"},
        )
        self.content = ipywidgets.Textarea(
            value=content,
            description="Text",
            style=_LABEL,
            rows=min(6, 1 + content.count("\n") + len(content) // 90),
            continuous_update=False,
            layout=_WIDE,
        )
        remove = ipywidgets.Button(
            icon="times", tooltip="Remove the turn", layout={"width": "2.6em"}
        )
        self.role.observe(on_change, names="value")
        self.content.observe(on_change, names="value")
        remove.on_click(lambda _: on_remove(self))
        super().__init__([self.role, self.content, remove])
