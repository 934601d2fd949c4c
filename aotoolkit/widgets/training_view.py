"""The curves of a training run, while it runs in another thread, process or on another machine.

Everything is read from the run's folder, so that neither needs to know of the other.
"""

import html
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from aotoolkit.errors import CorruptedFileError, ModelNotFoundError
from aotoolkit.plots import training_curves
from aotoolkit.training.trainer import TRAINING_ROWS, VALIDATION_ROWS
from aotoolkit.widgets.answer_view import table_html
from aotoolkit.widgets.figure_box import FigureBox, FigurePage
from aotoolkit.widgets.panel import StaticPanel, style_box

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from aotoolkit.widgets.base import FrontEnd
    from aotoolkit.widgets.export import HasHTML


class TrainingView(StaticPanel):
    """Loss, exact match and AUC of a run, with the no-activation control in the same axes.

    Attributes:
        run_folder: The `output_dir` of the run.
        live: Whether the folder is looked at again and again (`live.value`).
    """

    def __init__(self, run_folder: str | os.PathLike[str], *, every: float = 2.0) -> None:
        """Shows a run, also one that has not written anything yet.

        Args:
            run_folder: The `output_dir` of the run.
            every: Seconds between two looks at the folder.

        Raises:
            MissingExtraError: Plotly is not installed.
        """
        self.run_folder = Path(run_folder)
        self.title = f"Training run {self.run_folder.name}"
        self._figure: Figure | None = None
        self._seen: tuple[Any, ...] | None = None
        self._ended = threading.Event()
        self._box = FigureBox()
        self._status = ipywidgets.HTML()
        self.live = ipywidgets.ToggleButton(
            value=True, description="Live", icon="refresh", tooltip="Follow the run"
        )
        again = ipywidgets.Button(description="Look now", icon="eye", layout={"width": "auto"})
        again.on_click(lambda _: self.refresh())
        row = ipywidgets.HBox([self.live, again, self._status], layout={"align_items": "center"})
        super().__init__([style_box(), row, self._box])
        self.add_class("aop-panel")
        self.refresh()
        # A daemon: the end of the kernel does not wait for it.
        threading.Thread(
            target=self._follow, args=(every,), name="training-view", daemon=True
        ).start()

    def refresh(self) -> bool:
        """Reads the folder; whether there was anything new."""
        seen = self._files()
        if seen == self._seen:
            return False
        try:
            figure = training_curves(self.run_folder)
        except ModelNotFoundError:
            self._say(f"Waiting for the first row in {self.run_folder}.")
        except (CorruptedFileError, OSError) as error:
            self._say(f"{type(error).__name__}: {error}", error=True)
        else:
            self._figure = figure
            self._box.show(figure, self._table_html())
            curves: Any = figure.data  # a tuple, whatever its annotation says
            steps = [step for curve in curves for step in curve.x]
            self._say(f"Step {max(steps):,}, read at {time.strftime('%H:%M:%S')}.")
        self._seen = seen
        return True

    def close(self) -> None:
        """Takes the view away; the run goes on."""
        self._ended.set()
        super().close()

    def _follow(self, every: float) -> None:
        while not self._ended.wait(every):
            if self.live.value:
                self.refresh()

    def _files(self) -> tuple[Any, ...]:
        """What tells one state of the folder from another."""
        found = []
        for name in (TRAINING_ROWS, VALIDATION_ROWS):
            path = self.run_folder / name
            status = path.stat() if path.is_file() else None
            found.append(status and (status.st_size, status.st_mtime_ns))
        return tuple(found)

    def _say(self, text: str, *, error: bool = False) -> None:
        self._status.value = (
            f'<div class="aop-status{" aop-error" if error else ""}" role="status">'
            f"{html.escape(text)}</div>"
        )

    def _table_html(self) -> str:
        if self._figure is None:
            return ""
        # Names in a figure are HTML already.
        curves: Any = self._figure.data
        rows = [
            (
                html.unescape(curve.name),
                _panel_title(self._figure, curve),
                curve.x[-1],
                f"{curve.y[-1]:.3f}",
            )
            for curve in curves
        ]
        return table_html(("curve", "figure", "last step", "value"), rows)

    def static_html(self) -> str:
        """The last value of each curve."""
        return f"<h2>{html.escape(self.title)}</h2>{self._status.value}{self._table_html()}"

    def page_parts(self) -> "list[FrontEnd | HasHTML | str]":
        """The curves, which can be zoomed, and their last values."""
        figure = [] if self._figure is None else [FigurePage(self._figure)]
        return [*figure, self.static_html()]


def _panel_title(figure: Any, curve: Any) -> str:
    number = int((curve.yaxis or "y").removeprefix("y") or 1)
    return figure.layout.annotations[number - 1].text
