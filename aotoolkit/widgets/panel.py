"""What all panels share: a fallback without script, a worker, and a line that says how it goes."""

import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aotoolkit.widgets.base import HTML
from aotoolkit.widgets.worker import Job, ModelWorker

import ipywidgets  # isort: skip  (base says how to install it where it is missing)

from aotoolkit.widgets.answer_view import CSS, NOTICE

if TYPE_CHECKING:
    from aotoolkit.widgets.base import FrontEnd
    from aotoolkit.widgets.export import HasHTML


class StaticPanel(ipywidgets.VBox):
    """A box of widgets that also shows something where no script runs.

    Attributes:
        title: Its name, and that of the page that `save_html` writes.
    """

    title = ""

    def static_html(self) -> str:
        """The present state as HTML, without script, readable without style."""
        raise NotImplementedError

    def page_parts(self) -> "list[FrontEnd | HasHTML | str]":
        """What `save_html` writes: widgets, which stay interactive, and HTML."""
        return [self.static_html()]

    def title_html(self, about: str, *, name: bool = True) -> str:
        """The head of a panel, with the notice that stands in all of them.

        Args:
            about: What the panel is about, as plain text.
            name: Whether its title stands there too; a page has it as its heading.
        """
        strong = f"<strong>{html.escape(self.title)}</strong>" if name else ""
        return (
            f'<div class="aop-title">{strong}<span>{html.escape(about)}</span></div>'
            f'<div class="aop-notice" role="note">{NOTICE}</div>'
        )

    def close(self) -> None:
        """Takes the panel away, with all that is in it."""
        for part in _parts(self):
            close_all(part)
        super().close()

    def snapshot(self) -> HTML:
        """The present state as a plain output, which a saved notebook shows everywhere."""
        return HTML(styled(self.static_html()))

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes one HTML file that needs neither kernel nor network, whole or not at all.

        Returns:
            The path.
        """
        from aotoolkit.widgets.export import save_page

        parts = [
            HTML(styled(part)) if isinstance(part, str) else part for part in self.page_parts()
        ]
        return save_page(path, parts, title=self.title)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": styled(self.static_html())}, metadata


class Panel(StaticPanel):
    """A box whose buttons run models, on a thread of its own.

    Of two jobs the newer replaces the older, which is told to stop (`ModelWorker`).

    Attributes:
        status: How it goes, or the error of the last job as `Type: message`.
        action_buttons: Those that submit jobs; they stand out while none is under way.
    """

    action_buttons: Sequence[ipywidgets.Button] = ()

    def __init__(self, name: str) -> None:
        self.status = ipywidgets.HTML()
        self.stop_button = ipywidgets.Button(
            description="Stop", icon="stop", disabled=True, tooltip="Stop what is under way"
        )
        self.stop_button.on_click(lambda _: self.stop())
        self._worker = ModelWorker(name, on_error=self._failed, on_idle=self._idle)
        self._error = ""
        self.closed = False
        super().__init__()
        self.add_class("aop-panel")
        self.say("")

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._worker.busy

    @property
    def error(self) -> str:
        """What the last job raised, as `Type: message`; empty where it ended well."""
        return self._error

    def stop(self) -> None:
        """Stops what is under way; what is done so far stays."""
        self._worker.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until nothing is under way; False after `timeout` seconds.

        Interrupting the cell that waits stops the job.
        """
        return self._worker.wait(timeout)

    def close(self) -> None:
        """Takes the panel away and stops what is under way, without waiting for it."""
        self.closed = True
        self._worker.close()
        super().close()

    def say(self, text: str) -> None:
        """Shows how it goes."""
        self._error = ""
        self.status.value = f'<div class="aop-status" role="status">{html.escape(text)}</div>'

    def say_error(self, error: Exception) -> None:
        """Shows an error; the panel stays as usable as it was."""
        self._error = f"{type(error).__name__}: {error}"
        self.status.value = (
            f'<div class="aop-status aop-error" role="alert">✗ {html.escape(self._error)}</div>'
        )

    def _submit(self, job: Job) -> None:
        def run(stop: Any) -> None:
            self._look_busy(True)
            job(stop)

        self._worker.submit(run)

    def _look_busy(self, busy: bool) -> None:
        """What can be pressed, and what stands out."""
        self.stop_button.disabled = not busy
        self.stop_button.button_style = "warning" if busy else ""
        for button in self.action_buttons:
            button.button_style = "" if busy else "primary"

    def _failed(self, error: Exception) -> None:
        self.say_error(error)

    def _idle(self) -> None:
        self._look_busy(False)


def style_box() -> ipywidgets.HTML:
    """The rules of all panels, as the first child of a panel."""
    return ipywidgets.HTML(f"<style>{CSS}</style>", layout={"display": "none"})


def close_all(widget: ipywidgets.Widget) -> None:
    """Closes a widget and all in it, with layouts and styles, which else stay for ever.

    ipywidgets keeps whatever is not closed, in the kernel and in the browser.
    """
    for part in _parts(widget):
        close_all(part)
    widget.close()


def _parts(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """What is in a widget, shown or not, with its layout and style."""
    own = [*getattr(widget, "children", ())]
    own += [getattr(widget, name, None) for name in ("layout", "style")]
    for value in vars(widget).values():
        own += value if isinstance(value, list | tuple) else [value]
    return [part for part in own if isinstance(part, ipywidgets.Widget)]


def styled(body: str) -> str:
    """HTML with the panels' rules before it."""
    return f'<style>{CSS}</style><div class="aop-page">{body}</div>'


def look_again_button(look: Callable[[], object]) -> ipywidgets.Button:
    """A button beside a list of adapters, which shows those that were loaded since."""
    button = ipywidgets.Button(
        icon="refresh", tooltip="Show adapters that were loaded since", layout={"width": "2.6em"}
    )
    button.on_click(lambda _: look())
    return button


def step_html(number: int, name: str, hint: str = "") -> ipywidgets.HTML:
    """A heading of one step in a panel."""
    return ipywidgets.HTML(f'<div class="aop-step">{number}. {name} <i>{hint}</i></div>')
