"""Figures of an evaluation, in a notebook (as `aotoolkit.plots`) and in its report.

Plotly, of the extra `notebook`. Backgrounds are transparent and colours of middle lightness, so
that a figure reads in a light notebook and in a dark one. Text from data, such as a task's name,
is escaped, since Plotly takes it for HTML.
"""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aotoolkit.errors import EvalError, MissingExtraError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.metrics import Reliability
from aotoolkit.evals.table import KINDS, Row
from aotoolkit.evals.views import ablation_rows, ladders

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from aotoolkit.evals.runner import EvalResult

# At least 3:1 against white and against #111111 (WCAG 2.2, 1.4.11), and told apart by readers with
# the common colour-vision deficiencies together with the markers.
COLOURS = ("#2f7fc1", "#c7651a", "#1f8f63", "#b85aa0", "#8673d6", "#93801f", "#d1555b", "#5e8a98")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
INK = "#7a7a7a"
_GRID = "rgba(122, 122, 122, 0.3)"
_SHARE = (-0.03, 1.03)

# Heights in pixels.
_LINE = 26
_BETWEEN_PANELS = 90
_AROUND = 170


def eval_table(result: "EvalResult", *, tasks: Sequence[str] | None = None) -> "Figure":
    """What each arm reached, a panel for each task: a dot with its interval.

    Colour and shape say the kind of arm; the dotted line is chance. A void task is grey and
    hollow. Of a task with several metrics the first is drawn.

    Args:
        result: What `run_suite` returned.
        tasks: Those to draw, in this order; default all.

    Raises:
        EvalError: There is no such task, or none at all.
        MissingExtraError: Plotly is not installed.
    """
    go, make_subplots = plotly()
    headline = {task: result.table.main_rows(task) for task in result.table.tasks}
    drawn = list(headline) if tasks is None else list(tasks)
    unknown = [task for task in drawn if task not in headline]
    if not drawn or unknown:
        given = f"the task {unknown[0]!r}" if unknown else "no task"
        raise EvalError(
            f"tasks asks for {given}; the table has {', '.join(headline) or 'none'}. Name one or "
            "more of them."
        )
    heights = [_LINE * (len(headline[task]) + 1) for task in drawn]
    inner = sum(heights) + _BETWEEN_PANELS * (len(drawn) - 1)
    figure = make_subplots(
        rows=len(drawn),
        cols=1,
        row_heights=heights,
        vertical_spacing=_BETWEEN_PANELS / inner if len(drawn) > 1 else 0,
        subplot_titles=[_task_title(headline[task]) for task in drawn],
    )
    in_legend: set[str] = set()
    for number, task in enumerate(drawn, start=1):
        for kind in KINDS:
            rows = [row for row in headline[task] if row.kind == kind]
            if not rows:
                continue
            shape, colour = _look(kind, void=rows[0].void)
            label = f"{kind} (void)" if rows[0].void else kind
            figure.add_trace(
                go.Scatter(
                    x=[row.mean for row in rows],
                    y=[html.escape(row.arm) for row in rows],
                    error_x=_interval([(row.mean, row.low, row.high) for row in rows], colour),
                    mode="markers",
                    marker={"color": colour, "symbol": shape, "size": 10},
                    name=label,
                    legendgroup=label,
                    showlegend=label not in in_legend,
                    customdata=[(row.low, row.high, _counted(row)) for row in rows],
                    hovertemplate="%{y}: %{x:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]"
                    "<br>%{customdata[2]}",
                ),
                row=number,
                col=1,
            )
            in_legend.add(label)
        figure.add_shape(
            type="line",
            x0=headline[task][0].chance,
            x1=headline[task][0].chance,
            y0=0,
            y1=1,
            yref="y domain",
            line={"color": INK, "dash": "dot", "width": 1.5},
            name="chance",
            showlegend=number == 1,
            row=number,
            col=1,
        )
        figure.update_yaxes(
            type="category",
            categoryorder="array",
            categoryarray=[html.escape(row.arm) for row in headline[task]],
            range=[len(headline[task]) - 0.5, -0.5],  # the first arm on top
            automargin=True,
            row=number,
            col=1,
        )
    figure.update_annotations(x=0, xanchor="left")
    figure.update_xaxes(range=_SHARE)
    style(
        figure,
        title=f"{html.escape(result.table.suite)}: mean over units, 95 % interval",
        height=inner + _AROUND,
    )
    figure.update_layout(legend=_LEGEND_BELOW | {"y": -60 / inner})
    return figure


def eval_ablation(result: "EvalResult") -> "Figure":
    """The oracles of a suite beside each other, for each task that several of them answered.

    A void task is grey and hollow; the upright stroke is chance.

    Args:
        result: What `run_suite` returned.

    Raises:
        EvalError: No task has two oracles.
        MissingExtraError: Plotly is not installed.
    """
    go, _ = plotly()
    rows_of = ablation_rows(result)
    if not rows_of:
        raise EvalError(
            "No task of this suite was answered by two oracles, so there is nothing to set side by "
            "side. Give its tasks several oracle arms, such as oracles of several mixtures."
        )
    arms = list(dict.fromkeys(row.arm for rows in rows_of.values() for row in rows))
    line = _LINE * (len(arms) + 1)
    figure = go.Figure()
    for index, arm in enumerate(arms):
        shown = False
        for void in (False, True):
            points = [
                (place + _offset(index, len(arms), _LINE / line), row)
                for place, rows in enumerate(rows_of.values())
                for row in rows
                if row.arm == arm and row.void == void
            ]
            if not points:
                continue
            colour = INK if void else COLOURS[index % len(COLOURS)]
            shape = MARKERS[index % len(MARKERS)]
            figure.add_trace(
                go.Scatter(
                    x=[row.mean for _, row in points],
                    y=[y for y, _ in points],
                    error_x=_interval([(row.mean, row.low, row.high) for _, row in points], colour),
                    mode="markers",
                    marker={
                        "color": colour,
                        "symbol": f"{shape}-open" if void else shape,
                        "size": 10,
                    },
                    name=html.escape(arm),
                    legendgroup=html.escape(arm),
                    showlegend=not shown,
                    customdata=[
                        (row.low, row.high, _counted(row), html.escape(row.task))
                        for _, row in points
                    ],
                    hovertemplate="%{customdata[3]}: %{x:.2f} [%{customdata[0]:.2f}, "
                    "%{customdata[1]:.2f}]<br>%{customdata[2]}",
                )
            )
            shown = True
    figure.add_trace(
        go.Scatter(
            x=[rows[0].chance for rows in rows_of.values()],
            y=list(range(len(rows_of))),
            mode="markers",
            marker={
                "symbol": "line-ns",
                "size": _LINE * len(arms),
                "line": {"color": INK, "width": 1.5},
            },
            name="chance",
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows_of))),
        ticktext=[
            html.escape(task) + (" (void)" if rows[0].void else "")
            for task, rows in rows_of.items()
        ],
        range=[len(rows_of) - 0.5, -0.5],
        automargin=True,
    )
    figure.update_xaxes(range=_SHARE)
    figure.update_yaxes(zeroline=False)  # 0 is the first task here
    inner = len(rows_of) * line
    style(
        figure,
        title=f"{html.escape(result.table.suite)}: oracles, mean over units, 95 % interval",
        height=inner + _AROUND,
    )
    figure.update_layout(legend=_LEGEND_BELOW | {"y": -60 / inner})
    return figure


def eval_ladder(result: "EvalResult") -> "Figure":
    """Score by rung, a panel for each ladder of a suite (`aotoolkit.evals.views`).

    Every oracle has a line, and of each other kind the arm that is best over the ladder. The
    dotted line is chance.

    Args:
        result: What `run_suite` returned.

    Raises:
        EvalError: The suite has no ladder.
        MissingExtraError: Plotly is not installed.
    """
    go, make_subplots = plotly()
    drawn = ladders(result)
    if not drawn:
        raise EvalError(
            "This suite has no ladder: no task whose records have details['rung'], and no tasks "
            "named alike up to their last '/'."
        )
    panel = 320
    inner = panel * len(drawn) + _BETWEEN_PANELS * (len(drawn) - 1)
    figure = make_subplots(
        rows=len(drawn),
        cols=1,
        vertical_spacing=_BETWEEN_PANELS / inner if len(drawn) > 1 else 0,
        subplot_titles=[html.escape(f"{one.name}: {one.metric}") for one in drawn],
    )
    looks: dict[str, int] = {}
    for number, ladder in enumerate(drawn, start=1):
        names = [
            html.escape(rung) + (" (void)" if rung in ladder.void else "") for rung in ladder.rungs
        ]
        best = ladder.best_arms()
        for beside, (arm, kind) in enumerate(best.items()):
            points = [
                (place, name, ladder.figures[rung, arm])
                for place, (rung, name) in enumerate(zip(ladder.rungs, names, strict=True))
                if (rung, arm) in ladder.figures
            ]
            new = arm not in looks
            index = looks.setdefault(arm, len(looks))
            colour = COLOURS[index % len(COLOURS)]
            figure.add_trace(
                go.Scatter(
                    # Beside each other, so that no interval hides another.
                    x=[place + _offset(beside, len(best), 0.03) for place, _, _ in points],
                    y=[found.mean for _, _, found in points],
                    error_y=_interval([(f.mean, f.low, f.high) for _, _, f in points], colour),
                    mode="lines+markers",
                    line={"color": colour, "width": 2.5 if kind == "oracle" else 1.5},
                    marker={
                        "color": colour,
                        "symbol": MARKERS[index % len(MARKERS)],
                        "size": 10,
                    },
                    name=html.escape(f"{arm} ({kind})"),
                    legendgroup=html.escape(arm),
                    showlegend=new,
                    customdata=[(name, html.escape(found.text)) for _, name, found in points],
                    hovertemplate="%{customdata[0]}: %{customdata[1]}",
                ),
                row=number,
                col=1,
            )
        figure.add_trace(
            go.Scatter(
                x=list(range(len(names))),
                y=[ladder.chance[rung] for rung in ladder.rungs],
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 1.5},
                name="chance",
                legendgroup="chance",
                showlegend=number == 1,
                hoverinfo="skip",
            ),
            row=number,
            col=1,
        )
        figure.update_xaxes(
            tickvals=list(range(len(names))),
            ticktext=names,
            range=[-0.4, len(names) - 0.6],
            row=number,
            col=1,
        )
    figure.update_yaxes(range=_SHARE)
    figure.update_xaxes(zeroline=False)  # 0 is the first rung here
    style(
        figure,
        title=f"{html.escape(result.table.suite)}: mean over units by rung, 95 % interval",
        height=inner + _AROUND,
    )
    figure.update_layout(legend=_LEGEND_BELOW | {"y": -60 / inner})
    return figure


def reliability_diagram(reliabilities: Mapping[str, Reliability]) -> "Figure":
    """Accuracy by confidence.

    On the diagonal confidence is the chance of being right; points below it are answers surer than
    they should be. Bars are intervals over units (organisms); a point's area grows with its
    answers, whose number hovering shows.

    Args:
        reliabilities: Name -> what `aotoolkit.evals.metrics.reliability` returned, such as one for
            each kind of confidence, or before and after calibration.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    go, _ = plotly()
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": INK, "dash": "dot", "width": 1},
            name="calibrated",
            hoverinfo="skip",
        )
    )
    for index, (name, measured) in enumerate(reliabilities.items()):
        colour = COLOURS[index % len(COLOURS)]
        shares = [bin.accuracy for bin in measured.bins]
        figure.add_trace(
            go.Scatter(
                x=[bin.confidence for bin in measured.bins],
                y=[share.mean for share in shares],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [share.high - share.mean for share in shares],
                    "arrayminus": [share.mean - share.low for share in shares],
                    "thickness": 1.5,
                },
                customdata=[
                    (bin.num_items, bin.accuracy.n, html.escape(measured.unit))
                    for bin in measured.bins
                ],
                name=f"{html.escape(name)} (ECE {measured.ece:.3f}, Brier {measured.brier:.3f}"
                + ("" if measured.auroc is None else f", AUROC {measured.auroc:.2f}")
                + ")",
                mode="lines+markers",
                line={"color": colour},
                marker={
                    "color": colour,
                    "symbol": MARKERS[index % len(MARKERS)],
                    "size": [
                        6 + 16 * (bin.num_items / measured.num_items) ** 0.5
                        for bin in measured.bins
                    ],
                },
                hovertemplate="confidence %{x:.2f}, right %{y:.2f}<br>%{customdata[0]} answers, "
                "n = %{customdata[1]} (unit: %{customdata[2]})",
            )
        )
    figure.update_xaxes(title_text="confidence", range=[-0.03, 1.03])
    figure.update_yaxes(title_text="share of right answers", range=[-0.03, 1.03])
    counted = {
        f"{measured.num_items:,} answers, n = {measured.n:,} (unit: {html.escape(measured.unit)})"
        for measured in reliabilities.values()
    }
    style(figure, title=f"{'; '.join(sorted(counted))}; 95 % intervals over units", height=560)
    figure.update_layout(legend=_LEGEND_BELOW | {"y": -0.18})
    return figure


def plotly() -> tuple[Any, Any]:
    """`plotly.graph_objects` and `make_subplots`.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtraError(
            "Figures need plotly, which is not installed. Install it with "
            "`pip install 'aotoolkit[notebook]'`, or `pip install plotly`."
        ) from error
    return go, make_subplots


def style(figure: "Figure", *, title: str, height: int) -> None:
    """What all figures of this package share."""
    figure.update_layout(
        title={"text": title, "font": {"size": 14}},
        height=height,
        font={"color": INK},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        hoverlabel={"font": {"color": "#ffffff"}, "bgcolor": "#333333"},
        margin={"t": 80},
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)


_LEGEND_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "top"}


def _look(kind: Kind, *, void: bool) -> tuple[str, str]:
    """Marker and colour of a kind of arm."""
    index = KINDS.index(kind)
    return (f"{MARKERS[index]}-open", INK) if void else (MARKERS[index], COLOURS[index])


def _interval(points: Sequence[tuple[float, float, float]], colour: str) -> dict[str, Any]:
    """Error bars of (mean, low, high)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - mean for mean, _, high in points],
        "arrayminus": [mean - low for mean, low, _ in points],
        "color": colour,
        "thickness": 1.5,
    }


def _counted(row: Row) -> str:
    seeds = f", {row.num_seeds} seeds" if row.num_seeds > 1 else ""
    return html.escape(f"n = {row.n} (unit: {row.unit}), {row.num_items} items{seeds}")


def _task_title(rows: Sequence[Row]) -> str:
    counts = sorted({row.n for row in rows})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    void = ", void: the skyline is at chance" if rows[0].void else ""
    return html.escape(f"{rows[0].task}: {rows[0].metric}, n = {n} (unit: {rows[0].unit}){void}")


def _offset(index: int, count: int, step: float) -> float:
    """Where the one of `count` that has this index stands beside their common place."""
    return (index - (count - 1) / 2) * step
