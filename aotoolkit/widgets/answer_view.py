"""Answers as HTML: what was said, about what, and what speaks against it.

Whether an answer is supported is said by a sign and in words, never by colour alone. All text of
models and users is escaped here. The same HTML stands in a live panel, in a snapshot and in an
exported page, so it needs no script.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aotoolkit.oracle import Answer


NOTICE = (
    "<b>Oracles confabulate.</b> An oracle always answers, also where the activations hold "
    "nothing. Read the controls: an answer that is given without the evidence too is not read from "
    "it, and one that only the activations give can still be wrong."
)

# What each control was given instead of the evidence.
CONTROL_LABELS = {
    "no_activation": "no vectors",
    "zero": "zero vectors",
    "random": "random vectors",
    "shuffled": "the vectors, shuffled",
    "base": "the text in the base",
}
_CONFIDENCE_LABELS = {
    "log_probability": "probability of exactly these words",
    "mode_frequency": "share of samples that say it",
    "agreement": "share of positions that say it",
}

CSS = (Path(__file__).parent / "panel.css").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an answer is about.

    Attributes:
        oracle: The oracle's name in the panel.
        read: Whose activations were read, as `read_name` says it.
        layers: The blocks.
        positions: The positions in the prompt.
    """

    oracle: str
    read: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]


def ranges_text(positions: Iterable[int]) -> str:
    """Positions as ranges: (2, 3, 4, 9) -> "2-4, 9"."""
    ranges: list[list[int]] = []
    for position in sorted(set(positions)):
        if ranges and ranges[-1][1] == position - 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def model_name(adapter: str | None) -> str:
    """What a panel calls the model with this adapter."""
    return "base model" if adapter is None else adapter


def read_name(provenance: Mapping[str, Any]) -> str:
    """Whose activations an answer is about, by their provenance: a model, or two of them."""
    minus = provenance.get("subtracted")
    name = model_name(provenance["adapter"])
    if plain := provenance.get("amplified_from"):
        by = f"{provenance['amplified_by']:g}"
        return f"{name}, its difference to {model_name(plain['adapter'])} taken {by} times"
    if common := provenance.get("common_to"):
        share = f"{provenance['common_share']:g}"
        return f"{name}, less {share} of what {len(common) - 1} siblings have in common"
    return f"{name} minus {model_name(minus['adapter'])}" if minus else name


def asked_html(question: str, *, about: str = "") -> str:
    """What answers answer: the controls of a panel may say something else by then."""
    return f'<div class="aop-step">{html.escape(question)} <i>{html.escape(about)}</i></div>'


def head_html(reading: Reading) -> str:
    """One line that says what an answer is about."""
    layers = ", ".join(map(str, reading.layers))
    count = len(reading.positions)
    parts = [
        f"<b>{html.escape(reading.oracle)}</b>",
        f"reads {html.escape(reading.read)}",
        f"layer{'s' if len(reading.layers) > 1 else ''} {layers}",
        f"{count} token{'s' if count > 1 else ''} ({ranges_text(reading.positions)})",
    ]
    return f'<div class="aop-card-head">{"".join(f"<span>{part}</span>" for part in parts)}</div>'


def streaming_html(reading: Reading, text: str, *, note: str = "", ended: bool = False) -> str:
    """An answer that is still arriving, or was stopped."""
    waiting = "" if ended else " aop-waiting"
    return (
        f'<div class="aop-card">{head_html(reading)}'
        f'<div class="aop-answer{waiting}">{html.escape(text)}</div>'
        f'<div class="aop-verdict aop-unknown">{html.escape(note)}</div></div>'
    )


def answer_html(answer: "Answer", *, oracle: str) -> str:
    """An answer with its verdict, confidence and controls, under what it says was read."""
    reading = Reading(
        oracle=oracle,
        read=read_name(answer.provenance["activations"]),
        layers=answer.layers,
        positions=answer.positions,
    )
    return (
        f'<div class="aop-card">{head_html(reading)}'
        f'<div class="aop-answer">{html.escape(answer.text) or "<i>(nothing)</i>"}</div>'
        f"{verdict_html(answer)}{confidence_html(answer)}{controls_html(answer)}</div>"
    )


def verdict_text(answer: "Answer") -> str:
    """Whether the activations support an answer: a sign and words."""
    if answer.supported:
        return "✓ No control without the evidence gives this answer"
    if answer.supported is None and answer.sampled:
        return "? Support not known: the answer was drawn, and draws differ without any evidence"
    if answer.supported is None:
        return "? Support not known: no control that takes the evidence away was asked"
    listed = ", ".join(CONTROL_LABELS.get(name, name) for name in answer.unsupported_by)
    return f"✗ Not supported by the activations: the same answer comes from {listed}"


def verdict_html(answer: "Answer") -> str:
    """`verdict_text`, in a colour of its own as well."""
    kind = {True: "supported", False: "unsupported", None: "unknown"}[answer.supported]
    return f'<div class="aop-verdict aop-{kind}">{html.escape(verdict_text(answer))}</div>'


def confidence_html(answer: "Answer") -> str:
    """The confidence as a bar and in words; empty where none was asked for."""
    if answer.confidence is None:
        return ""
    label = _CONFIDENCE_LABELS.get(answer.confidence.kind, answer.confidence.kind)
    state = "calibrated" if answer.confidence.calibrated else "not calibrated"
    if answer.confidence.abstain:
        state += ", too low to answer"
    width = round(100 * min(1.0, max(0.0, answer.confidence.value)))
    return (
        f'<div class="aop-confidence"><span class="aop-bar" aria-hidden="true">'
        f'<span style="width:{width}%"></span></span>'
        f"<span>{label}: {answer.confidence.value:.2f}, {state}</span></div>"
    )


def controls_html(answer: "Answer") -> str:
    """What the oracle says to the same question without the evidence."""
    if not answer.controls:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(CONTROL_LABELS.get(name, name))}</th>'
        f"<td>{html.escape(text)}</td>"
        f"<td>{_SAME if name in answer.unsupported_by else ''}</td></tr>"
        for name, text in answer.controls.items()
    )
    return (
        '<table class="aop-table"><thead><tr><th scope="col">given instead</th>'
        '<th scope="col">the oracle says</th><td></td></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


_SAME = '<span class="aop-same">= the same</span>'


def cards_html(cards: Sequence[str]) -> str:
    """Cards side by side where there is room."""
    return f'<div class="aop-cards">{"".join(cards)}</div>'


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain table, every cell escaped."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="aop-scroll" tabindex="0"><table class="aop-table"><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def dialogue_html(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as it was given, for pages without script."""
    if isinstance(prompt, str):
        return f'<pre class="aop-code">{html.escape(prompt)}</pre>'
    turns = [(turn["role"], turn["content"]) for turn in prompt]
    return table_html(("role", "text"), turns)
