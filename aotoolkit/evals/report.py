"""The report of an evaluation: one HTML file that opens from disk, without a network.

Plotly's script stands in the file once, and a content security policy lets nothing else run and
nothing be fetched. All text from models, tasks and users is escaped. Every number of a figure is in
a table too, so that the page can be read without seeing the figures, and without Plotly.
"""

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aotoolkit.atomic import replacing
from aotoolkit.evals.confidences import Abstention, ConfidenceRow
from aotoolkit.evals.figures import eval_ablation, eval_ladder, eval_table, reliability_diagram
from aotoolkit.evals.records import Record
from aotoolkit.evals.statistics import Difference
from aotoolkit.evals.table import KINDS, Row, best_row, keeps_evidence
from aotoolkit.evals.views import Ladder, ablation_rows, ladders

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from aotoolkit.evals.runner import EvalResult

REPORT = "report.html"

ITEMS_SHOWN = 3
TOKENS_AROUND = 24
_SCORES_SHOWN = 3
_ANSWERS_SHOWN = 8

_ABSENT = "\N{EM DASH}"  # where a table has no value
# A control that shuffles what was read keeps what it says: being above it is not asked for.
_SURROGATE = re.compile("[\ud800-\udfff]")

_CAN_SHOW = (
    "Where a task is not void and the interval of an oracle minus each of its controls lies above "
    "0, the activations put something into its answers that the question, the text and the habit "
    "of answering do not.",
    "It cannot show that an oracle is needed where a baseline does as well, nor how it does on "
    "other models, layers, prompts or questions than these: n counts the units named in the "
    "tables, and the intervals are about drawing other units of the same kind.",
    "A void task speaks neither for nor against an oracle, and one answer, right or wrong, shows "
    "nothing by itself.",
)


def write_report(result: "EvalResult", folder: str | Path, *, model: str | None = None) -> Path:
    """Writes report.html: the table, figures, ladders, ablations, confidence, and items.

    Without Plotly (extra `notebook`) the report has no figures and says so; it has all numbers.

    Args:
        result: What `run_suite` returned.
        folder: Where to; made where it is missing.
        model: The target's name, for the heading.

    Returns:
        The file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT
    page = _page(result, model)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))
    return path


@dataclass
class _Drawing:
    """The figures of a page.

    Attributes:
        plotly_js: Plotly's script; None where it is not installed.
        count: How many figures there are so far.
    """

    plotly_js: str | None
    count: int = 0

    def add(self, draw: Callable[[], "Figure"], says: str) -> str:
        """A figure with its text alternative; nothing without Plotly."""
        if self.plotly_js is None:
            return ""
        figure = draw()
        # The page has its own headings; titles of panels are needed where there are several.
        figure.update_layout(title=None, margin={"t": 30, "l": 10, "r": 20})
        layout: Any = figure.layout
        if len(layout.annotations) == 1:
            layout.annotations = ()
        self.count += 1
        name = f"figure-{self.count}"
        # Plotly writes "<" as an escape in its JSON, so that no text can end the script.
        return (
            f'<figure><div class="plot" id="{name}" role="img" aria-label="{_text(says)}" '
            f'style="min-height:{layout.height:.0f}px"></div>'
            f"<figcaption>{_text(says)}</figcaption>"
            f'<script type="application/json" data-figure="{name}">{figure.to_json()}</script>'
            "</figure>"
        )


# The page


def _page(result: "EvalResult", model: str | None) -> str:
    drawing = _Drawing(_plotly_js())
    headline = {task: result.table.main_rows(task) for task in result.table.tasks}
    found = ladders(result)
    sections = [
        _Section("shows", "What this can and cannot show", _can_show(result, drawing)),
        _Section("overview", "Overview", _overview(result, headline)),
        _Section("tasks", "Tasks", _tasks(result, headline, drawing)),
        _Section("ladder", "Ladder", _ladders(result, found, drawing)),
        _Section("ablations", "Ablations", _ablations(result, drawing)),
        _Section("confidence", "Confidence", _confidences(result, drawing)),
        _Section("items", "Worst and best items", _items(result, headline)),
    ]
    scripts = [drawing.plotly_js, _beside("report.js")] if drawing.count else []
    suite = _text(result.table.suite)
    # The policy names the scripts by their digest: one that a text smuggled in would not run.
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            f"script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
            "base-uri 'none'; form-action 'none'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Evaluation: {suite}</title>",
            f"<style>\n{_beside('report.css')}</style>\n</head>\n<body>",
            '<a class="skip" href="#content">Skip to the content</a>',
            f"<header><h1>Evaluation: {suite}</h1>{_facts(result, headline, model)}</header>",
            '<nav aria-label="Sections"><ul>',
            *(f'<li><a href="#{one.id}">{_text(one.title)}</a></li>' for one in sections),
            '</ul></nav>\n<main id="content" tabindex="-1">',
            *(one.html for one in sections),
            "</main>",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


@dataclass(frozen=True)
class _Section:
    id: str
    title: str
    body: str

    @property
    def html(self) -> str:
        return (
            f'<section aria-labelledby="{self.id}"><h2 id="{self.id}">{_text(self.title)}</h2>\n'
            f"{self.body}</section>"
        )


def _facts(result: "EvalResult", headline: Mapping[str, Sequence[Row]], model: str | None) -> str:
    voids = sum(rows[0].void for rows in headline.values())
    items = {(record.task, record.item) for record in result.records}
    facts = {
        "Model": model,
        "Tasks": f"{len(headline)}" + (f", {voids} of them void" if voids else ""),
        "Arms": str(len({row.arm for rows in headline.values() for row in rows})),
        "Items": f"{len(items):,}",
        "Answers": f"{len(result.records):,}",
        "Time": _duration(result.seconds),
    }
    return (
        '<dl class="facts">'
        + "".join(
            f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>"
            for name, value in facts.items()
            if value is not None
        )
        + "</dl>"
    )


def _can_show(result: "EvalResult", drawing: _Drawing) -> str:
    notes = list(result.table.notes)
    if drawing.plotly_js is None:
        notes.append(
            "Plotly was not installed when this report was written, so it has no figures; the "
            "tables have all numbers. Install it with pip install 'aotoolkit[notebook]'."
        )
    listed = "".join(f'<li dir="auto">{_text(note)}</li>' for note in notes)
    script = (
        "<noscript><p>The figures need JavaScript. The tables have all numbers.</p></noscript>"
        if drawing.plotly_js
        else ""
    )
    return f"<p>{' '.join(map(_text, _CAN_SHOW))}</p>{script}" + (
        f"<details><summary>Notes of this run ({len(notes)})</summary><ul>{listed}</ul></details>"
        if notes
        else ""
    )


def _overview(result: "EvalResult", headline: Mapping[str, Sequence[Row]]) -> str:
    if not headline:
        return "<p>The table has no row.</p>"
    body = []
    for task, rows in headline.items():
        first = rows[0]
        cells = "".join(
            f"<td>{_ABSENT if best is None else _best_cell(best)}</td>"
            for best in (best_row(rows, kind) for kind in KINDS)
        )
        above = _above_controls(rows)
        verdict = "void" if first.void else {None: _ABSENT, True: "yes", False: "no"}[above]
        kept = "yes" if task in result.table.secret_keeping else "no"
        body.append(
            f"<tr{_void_class(first)}><th scope=row>{_text(task)}</th>"
            f"<td>{kept}</td><td>{_text(first.metric)}</td><td class=number>{first.n}</td>"
            f"<td>{_text(first.unit)}</td><td class=number>{first.chance:.2f}</td>{cells}"
            f"<td>{verdict}</td></tr>"
        )
    claims = "".join(f"<li>{_text(claim)}</li>" for claim in result.table.claims())
    return f"<ul>{claims}</ul>" + _table(
        "The best arm of each kind, by its mean; in brackets 95 % intervals over units. The best "
        "of several is a little too good: look at the single arms below. The last column says "
        "whether the best oracle minus each control without the evidence has an interval above 0.",
        ["Task", "Kept secret", "Score", "n", "Unit", "Chance"]
        + [f"Best {kind}" for kind in KINDS]
        + ["Above its controls"],
        body,
    )


def _above_controls(rows: Sequence[Row]) -> bool | None:
    """Whether the best oracle minus each control has an interval above 0; None where unknown."""
    differences = [
        row.difference for row in rows if row.kind == "control" and not keeps_evidence(row)
    ]
    known = [difference for difference in differences if difference is not None]
    return all(difference.low > 0 for difference in known) if known else None


def _best_cell(row: Row) -> str:
    return f"<span class=number>{_estimate(row)}</span><br>{_text(row.arm)}"


def _tasks(result: "EvalResult", headline: Mapping[str, Sequence[Row]], drawing: _Drawing) -> str:
    blocks = []
    for number, (task, rows) in enumerate(headline.items(), start=1):
        void = rows[0].void
        others: dict[str, list[Row]] = {}
        for row in result.table.rows:
            if row.task == task and row.metric != rows[0].metric:
                others.setdefault(row.metric, []).append(row)
        more = "".join(
            _rows_table(metric, sorted(own, key=lambda row: KINDS.index(row.kind)))
            for metric, own in others.items()
        )
        names = ", ".join(_text(metric) for metric in others)
        figure = drawing.add(
            lambda task=task: eval_table(result, tasks=[task]),
            f"{task}: mean and 95 % interval of each arm; dotted line: chance."
            + (" Void." if void else ""),
        )
        blocks.append(
            f'<h3 id="task-{number}">{_text(task)}{" (void)" if void else ""}</h3>'
            + (f'<p class="void">Void: {_text(result.table.why_void(task))}.</p>' if void else "")
            + f'<div class="task"><div>{_rows_table(rows[0].metric, rows)}</div>{figure}'
            + (
                f"<details class=wide><summary>Other scores of the same answers: {names}"
                f"</summary>{more}</details>"
                if more
                else ""
            )
            + "</div>"
        )
    return "".join(blocks) or "<p>The table has no task.</p>"


def _rows_table(metric: str, rows: Sequence[Row]) -> str:
    body = [
        f"<tr{_void_class(row)}><th scope=row>{_text(row.arm)}</th><td>{row.kind}</td>"
        f"<td class=number>{_estimate(row)}</td>"
        f"<td class=number>{row.n}</td><td class=number>{row.num_items}</td>"
        f"<td class=number>{row.num_seeds}</td>{_difference_cells(row.difference)}</tr>"
        for row in rows
    ]
    units = ", ".join(dict.fromkeys(row.unit for row in rows))
    # Of a further score nobody states it.
    chance = "" if math.isnan(rows[0].chance) else f" Chance: {rows[0].chance:.2f}."
    return _table(
        f"Score: {metric}. n counts: {units}.{chance} In brackets 95 % intervals"
        " over units; differences are paired, and p is corrected (Holm) for the arms of "
        "the task.",
        ["Arm", "Kind", "Mean", "n", "Items", "Seeds", "Best oracle minus it", "p"],
        body,
    )


# Ladder, ablations, confidence


def _ladders(result: "EvalResult", found: Sequence[Ladder], drawing: _Drawing) -> str:
    if not found:
        return (
            "<p>This suite has no ladder: no task whose items name a rung, and no tasks named "
            "alike up to a last “/”.</p>"
        )
    figure = drawing.add(
        lambda: eval_ladder(result),
        "Mean and 95 % interval by rung: each oracle, and the best control, baseline and skyline; "
        "dotted line: chance.",
    )
    return figure + "".join(map(_ladder, found))


def _ladder(ladder: Ladder) -> str:
    columns = ["Arm", "Kind"]
    for rung in ladder.rungs:
        counts = {figure.n for (at, _), figure in ladder.figures.items() if at == rung}
        void = " (void)" if rung in ladder.void else ""
        columns.append(
            f"{rung}{void}, n = {max(counts, default=0)}, chance {ladder.chance[rung]:.2f}"
        )
    body = [
        f"<tr><th scope=row>{_text(arm)}</th><td>{kind}</td>"
        + "".join(
            f"<td{' class=isvoid' if rung in ladder.void else ''}>"
            f"{ladder.figures.get((rung, arm), _ABSENT)}</td>"
            for rung in ladder.rungs
        )
        + "</tr>"
        for arm, kind in ladder.kinds.items()
    ]
    units = ", ".join(dict.fromkeys(figure.unit for figure in ladder.figures.values()))
    return f"<h3>{_text(ladder.name)}</h3>" + _table(
        f"Score: {ladder.metric}. n counts: {units}. In brackets 95 % intervals over units.",
        columns,
        body,
    )


def _ablations(result: "EvalResult", drawing: _Drawing) -> str:
    rows_of = ablation_rows(result)
    if not rows_of:
        return (
            "<p>No task was answered by two oracles, so there is nothing to set side by side.</p>"
        )
    arms = list(dict.fromkeys(row.arm for rows in rows_of.values() for row in rows))
    body = []
    for task, rows in rows_of.items():
        of = {row.arm: row for row in rows}
        cells = "".join(
            f"<td class=number>{_estimate(of[arm]) if arm in of else _ABSENT}</td>" for arm in arms
        )
        void = " (void)" if rows[0].void else ""
        body.append(
            f"<tr{_void_class(rows[0])}><th scope=row>{_text(task)}{void}</th>"
            f"<td class=number>{rows[0].n}</td><td>{_text(rows[0].unit)}</td>"
            f"<td class=number>{rows[0].chance:.2f}</td>{cells}</tr>"
        )
    figure = drawing.add(
        lambda: eval_ablation(result),
        "Mean and 95 % interval of each oracle by task; upright stroke: chance.",
    )
    table = _table(
        "The oracles of each task, mean with its 95 % interval. Overlapping intervals do not say "
        "that two are alike: the paired differences are with the tasks.",
        ["Task", "n", "Unit", "Chance", *arms],
        body,
    )
    return figure + table + "".join(_comparison(result, claim) for claim in _claims(result))


def _claims(result: "EvalResult") -> list[str]:
    return list(dict.fromkeys(pair.claim for pair in result.table.comparisons))


def _comparison(result: "EvalResult", claim: str) -> str:
    """A claim about oracles, pair by pair and task by task."""
    body = []
    for pair in (pair for pair in result.table.comparisons if pair.claim == claim):
        verdict = "void" if pair.void else pair.verdict
        void = " class=isvoid" if pair.void else ""
        seeds = pair.difference.num_seeds
        body.append(
            f"<tr{void}><th scope=row>{_text(pair.task)}</th><td>{_text(pair.metric)}</td>"
            f"<td>{_text(pair.higher)}</td><td>{_text(pair.lower)}</td>"
            f"{_difference_cells(pair.difference)}<td class=number>{pair.difference.n}</td>"
            f"<td class=number>{seeds}</td><td>{_text(verdict)}</td></tr>"
        )
    return _table(
        f"Claim: {claim}. Paired by item and unit; p (of these seeds) after Holm's correction over "
        "this table. Decided where p is below .05 and the interval (over seeds too) excludes 0.",
        ["Task", "Score", "Oracle", "Against", "Difference", "p", "n", "Seeds", "The claim"],
        body,
    )


def _confidences(result: "EvalResult", drawing: _Drawing) -> str:
    found = result.table.confidences
    left_out = ""
    if found.partly_right:
        left_out += (
            "<p>Left out, because an answer there can be partly right: answers of "
            f"{_text(', '.join(sorted(found.partly_right)))} that are.</p>"
        )
    if found.num_outside:
        left_out += f"<p>Left out: {found.num_outside:,} confidences that are not from 0 to 1.</p>"
    if not found.rows:
        return f"<p>No answer of an oracle carries a confidence that can be shown.</p>{left_out}"
    drawn = {f"{row.arm}, {row.kind}": row.measured for row in found.together} | {
        f"{row.arm}, {row.kind}, calibrated by other units": row.calibrated
        for row in found.together
        if row.calibrated is not None
    }
    body = [
        f"<tr><th scope=row>{_text(row.task or 'all of these')}</th><td>{_text(row.arm)}</td>"
        f"<td>{_text(row.kind)}</td>{_reliability_cells(row)}</tr>"
        for row in found.rows
    ]
    abstaining = [
        f"<tr><th scope=row>{_text(row.task or 'all of these')}</th><td>{_text(row.arm)}</td>"
        f"<td>{_text(row.kind)}</td>{_abstention_cells(row.abstention)}</tr>"
        for row in found.rows
        if row.abstention is not None
    ]
    bins = [
        f"<tr><th scope=row>{_text(name)}</th><td>{bin.low:.1f} to {bin.high:.1f}</td>"
        f"<td class=number>{bin.confidence:.2f}</td><td class=number>{bin.accuracy}</td>"
        f"<td class=number>{bin.num_items}</td><td class=number>{bin.accuracy.n}</td></tr>"
        for name, one in drawn.items()
        for bin in one.bins
    ]
    figure = drawing.add(
        lambda: reliability_diagram(drawn),
        "Share of right answers by confidence, over all tasks; on the dotted diagonal confidence "
        "is the chance of being right.",
    )
    return (
        "<p>A forced choice is right where its likeliest choice is; a confidence in a text, where "
        "the text is. Calibrated: by a temperature (and a shift, where there is but one number) "
        "that was fitted on other units than those it is shown for.</p>"
        + left_out
        + figure
        + _table(
            "How well confidence says which answers are right. ECE and Brier score: 0 is best. "
            "AUROC: 0.5 is no better than chance.",
            [
                *("Task", "Oracle", "Confidence", "ECE", "ECE, calibrated", "Brier"),
                *("Brier, calibrated", "AUROC", "Answers", "n", "Unit"),
            ],
            body,
        )
        + (
            _table(
                "What abstaining would buy: only answers of the threshold's confidence and above "
                "are given. Precision is that of answers of units on which the threshold was not "
                "chosen; the threshold itself is that of all.",
                [
                    *("Task", "Oracle", "Confidence", "Precision asked for", "Threshold"),
                    *("Precision reached", "Answers given", "n"),
                ],
                abstaining,
            )
            if abstaining
            else ""
        )
        + "<details><summary>The points of the figure</summary>"
        + _table(
            "Each point of the figure, with its 95 % interval over units.",
            ["Oracle, confidence", "Range", "Mean confidence", "Right", "Answers", "n"],
            bins,
        )
        + "</details>"
    )


def _reliability_cells(row: ConfidenceRow) -> str:
    found, calibrated = row.measured, row.calibrated
    ece, brier = (
        (_ABSENT, _ABSENT)
        if calibrated is None
        else (f"{calibrated.ece:.3f}", f"{calibrated.brier:.3f}")
    )
    auroc = _ABSENT if found.auroc is None else f"{found.auroc:.2f}"
    return (
        f"<td class=number>{found.ece:.3f}</td><td class=number>{ece}</td>"
        f"<td class=number>{found.brier:.3f}</td><td class=number>{brier}</td>"
        f"<td class=number>{auroc}</td><td class=number>{found.num_items}</td>"
        f"<td class=number>{found.n}</td><td>{_text(found.unit)}</td>"
    )


def _abstention_cells(found: Abstention) -> str:
    threshold = "not reached" if found.threshold is None else f"{found.threshold:.2f}"
    reached, n = (
        (_ABSENT, _ABSENT) if found.reached is None else (str(found.reached), found.reached.n)
    )
    return (
        f"<td class=number>{found.precision:.2f}</td><td class=number>{threshold}</td>"
        f"<td class=number>{reached}</td><td class=number>{found.coverage:.0%}</td>"
        f"<td class=number>{n}</td>"
    )


# Items


def _items(result: "EvalResult", headline: Mapping[str, Sequence[Row]]) -> str:
    by_task: dict[str, dict[str, list[Record]]] = {}
    for record in result.records:
        by_task.setdefault(record.task, {}).setdefault(record.item, []).append(record)
    blocks = []
    for task, items in by_task.items():
        rows = headline.get(task, ())
        order = {row.arm: place for place, row in enumerate(rows)}
        oracles = dict.fromkeys(
            record.arm for own in items.values() for record in own if record.kind == "oracle"
        )
        inner = []
        for arm in oracles:
            ranked = sorted(
                (item for item, own in items.items() if any(r.arm == arm for r in own)),
                key=lambda item: _rank(items[item], arm),
            )
            worst = ranked[:ITEMS_SHOWN]
            best = [item for item in reversed(ranked[-ITEMS_SHOWN:]) if item not in worst]
            inner.append(
                f"<details><summary><strong>{_text(arm)}</strong>: the {len(worst)} worst and the "
                f"{len(best)} best of {len(ranked):,} items</summary>"
                + "".join(
                    f"<h4>{heading}</h4>"
                    + "".join(_item(items[item], arm, order) for item in chosen)
                    for heading, chosen in (("Worst", worst), ("Best", best))
                    if chosen
                )
                + "</details>"
            )
        if inner:
            void = " (void)" if rows and rows[0].void else ""
            blocks.append(f"<h3>{_text(task)}{void}</h3>{''.join(inner)}")
    if not blocks:
        return "<p>No item was answered by an oracle.</p>"
    return (
        "<p>By the mean score over seeds; of equal ones, those where the accepted answer stood "
        "furthest below the other choices, or above them. Beside each oracle's answer is that of "
        "every other arm to the same item. In the text that was read, what the oracle was given is "
        "marked: highlighted, boxed and underlined.</p>" + "".join(blocks)
    )


def _rank(records: Sequence[Record], arm: str) -> tuple[float, float, str]:
    own = [record for record in records if record.arm == arm]
    return (
        sum(record.correct for record in own) / len(own),
        sum(_margin(record) for record in own) / len(own),
        own[0].item,
    )


def _margin(record: Record) -> float:
    """How far the best accepted choice is above the best other one; 0 without scores."""
    right = [score for choice, score in record.scores.items() if choice in record.answers]
    other = [score for choice, score in record.scores.items() if choice not in record.answers]
    return max(right) - max(other) if right and other else 0.0


def _item(records: Sequence[Record], arm: str, order: Mapping[str, int]) -> str:
    own = next(record for record in records if record.arm == arm)
    by_arm: dict[str, list[Record]] = {}
    for record in records:
        by_arm.setdefault(record.arm, []).append(record)

    def place(name: str) -> tuple[bool, int, int]:
        kind = by_arm[name][0].kind
        return name != arm, KINDS.index(kind), order.get(name, len(order))

    body = []
    for name in sorted(by_arm, key=place):
        answered = by_arm[name]
        score = sum(record.correct for record in answered) / len(answered)
        body.append(
            f"<tr><th scope=row>{_text(name)}</th><td>{answered[0].kind}</td>"
            f'<td class=said dir="auto">{_answers(answered)}</td>'
            f'<td dir="auto">{_top_scores(answered)}</td>'
            f"<td class=number>{score:.2f}</td></tr>"
        )
    more = len(own.answers) - _ANSWERS_SHOWN
    accepted = ", ".join(f"<bdi>{_text(a)}</bdi>" for a in own.answers[:_ANSWERS_SHOWN])
    return (
        f"<article><h5>Item {_text(own.item)}</h5><dl>"
        f"<dt>Unit</dt><dd><bdi>{_text(own.unit)}</bdi></dd>"
        f'<dt>Question</dt><dd class=said dir="auto">{_text(own.question)}</dd>'
        f"<dt>Accepted</dt><dd>{accepted}{f' and {more} more' if more > 0 else ''}</dd></dl>"
        f"{_tokens(own)}"
        + _table(
            "What each arm answered.",
            ["Arm", "Kind", "Answer", "Likeliest choices", "Score"],
            body,
            described=f"Answers to item {own.item}",
        )
        + "</article>"
    )


def _answers(records: Sequence[Record]) -> str:
    """The answers of one arm; those of its seeds together where they are the same."""
    by_text: dict[str, list[str]] = {}
    for record in records:
        by_text.setdefault(record.text, []).append(str(record.seed))
    if len(records) == 1:
        return _text(records[0].text) or "<span class=quiet>(nothing)</span>"
    return "<br>".join(
        f"<bdi>{_text(text) or '(nothing)'}</bdi> <span class=quiet>({_seeds(seeds)})</span>"
        for text, seeds in by_text.items()
    )


def _seeds(seeds: Sequence[str]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_text(', '.join(seeds))}"


def _top_scores(records: Sequence[Record]) -> str:
    """The choices with the highest scores, by the mean over seeds."""
    scored = [record.scores for record in records if record.scores]
    means = {
        choice: sum(scores.get(choice, -math.inf) for scores in scored) / len(scored)
        for choice in (scored[0] if scored else ())
    }
    best = sorted(means.items(), key=lambda pair: -pair[1])[:_SCORES_SHOWN]
    return (
        "<br>".join(f"<bdi>{_text(choice)}</bdi> {score:.2f}" for choice, score in best) or _ABSENT
    )


def _tokens(record: Record) -> str:
    """The text that was read, with what was read marked; what is far from it is left out."""
    read = set(record.read)
    near = {
        place
        for position in read
        for place in range(position - TOKENS_AROUND, position + TOKENS_AROUND + 1)
    }
    runs: list[tuple[str, list[int]]] = []
    for place in range(len(record.tokens)):
        kind = "read" if place in read else "near" if place in near or not read else "far"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(place)
    parts = []
    for kind, places in runs:
        tokens = [_token(record.tokens[place]) for place in places]
        if kind == "near":
            parts.append("".join(tokens))
        elif kind == "far":
            parts.append(f"<span class=left-out> […{len(places):,} tokens…] </span>")
        else:
            where = (
                f"position {places[0]}"
                if len(places) == 1
                else f"positions {places[0]} to {places[-1]}"
            )
            # Said as text: a name on an element without a role is not read out.
            parts.append(
                f'<mark title="read: {where}"><span class=heard>[read, {where}: </span>'
                + "".join(f"<span>{token}</span>" for token in tokens)
                + "<span class=heard>]</span></mark>"
            )
    count = f"{len(read)} of {len(record.tokens)} tokens were read"
    return (
        f'<p class=quiet>Text, of which {count}:</p><p class=tokens dir="auto">{"".join(parts)}</p>'
    )


def _token(token: str) -> str:
    """A token, its line breaks seen."""
    return _text(token).replace("\n", "↵\n")


# Pieces


def _table(
    caption: str, columns: Iterable[str], body: Iterable[str], *, described: str | None = None
) -> str:
    head = "".join(f"<th scope=col>{_text(column)}</th>" for column in columns)
    # The keyboard must reach what scrolls.
    return (
        f'<div class=scroll tabindex=0 role=group aria-label="{_text(described or caption)}">'
        f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _void_class(row: Row) -> str:
    return " class=isvoid" if row.void else ""


def _estimate(row: Row) -> str:
    return f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]"


def _difference_cells(difference: Difference | None) -> str:
    if difference is None:
        return f"<td class=number>{_ABSENT}</td>" * 2
    return f"<td class=number>{difference}</td><td class=number>{difference.p_holm:.2g}</td>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _text(value: Any) -> str:
    """Text as HTML holds it, in content and in attributes."""
    # Halves of a surrogate pair, which a cut answer can hold, cannot be written as UTF-8.
    return html.escape(_SURROGATE.sub("\ufffd", str(value)))


def _plotly_js() -> str | None:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return get_plotlyjs()


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
