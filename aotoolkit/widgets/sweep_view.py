"""A sweep as a heatmap, and what was said under each of its settings."""

import html
from typing import TYPE_CHECKING, Any

import ipywidgets

from aotoolkit.plots import sweep_heatmap
from aotoolkit.widgets.answer_view import table_html
from aotoolkit.widgets.figure_box import FigureBox, FigurePage
from aotoolkit.widgets.panel import StaticPanel, style_box

if TYPE_CHECKING:
    from aotoolkit.evals.sweep import Setting, SweepCell, SweepResult
    from aotoolkit.widgets.base import FrontEnd
    from aotoolkit.widgets.export import HasHTML

_REPLIES_SHOWN = 30


class SweepView(StaticPanel):
    """The heatmap of a sweep; a setting can be chosen, and its replies read.

    Attributes:
        result: The sweep.
        chosen: The setting that is looked at, the best at first; see `cell`.
    """

    title = "Sweep"

    def __init__(self, result: "SweepResult") -> None:
        """Shows a sweep.

        Args:
            result: What `aotoolkit.evals.sweep.sweep` returned, or `SweepResult.load`.

        Raises:
            MissingExtraError: Plotly is not installed.
        """
        self.result = result
        self._figure = sweep_heatmap(result)
        figure = FigureBox()
        figure.show(self._figure, self._figures_html())
        best_first = sorted(range(len(result.cells)), key=lambda i: -self._share(result.cells[i]))
        self.chosen: Any = ipywidgets.Dropdown(
            options=[(self._name(result.cells[i]), i) for i in best_first],
            value=result.cells.index(result.best),
            description="Setting",
            tooltip="The setting whose replies are shown, best first",
            layout={"width": "46em", "max_width": "100%"},
        )
        self._replies = ipywidgets.HTML()
        self.chosen.observe(lambda _: self._show(), names="value")
        title = ipywidgets.HTML(f'<div class="aop-title"><strong>{self.title}</strong></div>')
        super().__init__([style_box(), title, figure, self.chosen, self._replies])
        self.add_class("aop-panel")
        self._show()

    @property
    def cell(self) -> "SweepCell":
        """Figures and replies of the chosen setting."""
        return self.result.cells[self.chosen.value]

    def choose(self, setting: "Setting") -> None:
        """Chooses a setting of the sweep."""
        self.chosen.value = [cell.setting for cell in self.result.cells].index(setting)

    def _share(self, cell: "SweepCell") -> float:
        return cell.figures(self.result.match)[0].mean

    def _name(self, cell: "SweepCell") -> str:
        return f"{cell.setting}: {cell.figures(self.result.match)[0]}"

    def _show(self) -> None:
        self._replies.value = self._replies_html()

    def _replies_html(self) -> str:
        cell, match = self.cell, self.result.match
        right, without, gain = cell.figures(match)
        said = list(zip(self.result.answers, cell.replies, cell.replies_without, strict=True))
        more = len(said) - _REPLIES_SHOWN
        rest = f'<div class="aop-status">… and {more:,} more</div>' if more > 0 else ""
        return (
            f"<h3>{html.escape(str(cell.setting))}</h3><div>{match} match {right}; without "
            f"activations {without}; gain {gain} (n = {right.n:,} groups, {cell.num_examples:,} "
            f"examples)</div>"
            + table_html(
                ("right answer", "reply", "reply without activations"), said[:_REPLIES_SHOWN]
            )
            + rest
        )

    def _figures_html(self) -> str:
        rows = [(cell.setting, *cell.figures(self.result.match)) for cell in self.result.cells]
        match = self.result.match
        return table_html(
            ("setting", f"{match} match", "without activations", "gain"),
            rows,
        )

    def static_html(self) -> str:
        """The figures of all settings as a table, and the replies of the chosen one."""
        return f"<h2>{self.title}</h2>{self._figures_html()}{self._replies_html()}"

    def page_parts(self) -> "list[FrontEnd | HasHTML | str]":
        """The heatmap, which can be zoomed, and what `static_html` holds."""
        return [FigurePage(self._figure), self.static_html()]
