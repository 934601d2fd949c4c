"""What an oracle said, with what it says without the evidence."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from aotoolkit.errors import PositionError
from aotoolkit.oracle.confidence import Confidence
from aotoolkit.oracle.controls import KEEPS_EVIDENCE, takes_evidence_away, unsupported_by

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An oracle's answer to one question about some activations.

    Attributes:
        question: What was asked.
        text: What the oracle said.
        controls: Control -> what the oracle said to the same question there; empty where controls
            were switched off or do not apply.
        log_prob: Log-probability (nats) of the generated tokens, end of turn included, summed.
        num_tokens: How many tokens that sums over.
        layers: Blocks whose vectors were injected.
        positions: Their positions in the target's prompt.
        tokens: The target's tokens there.
        provenance: Where the activations and the oracle came from.
        confidence: How sure it is; None where that was not asked for.
        sampled: Whether the text is one random draw. The most frequent of many is none.
    """

    question: str
    text: str
    controls: Mapping[str, str]
    log_prob: float
    num_tokens: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    provenance: Mapping[str, Any]
    confidence: Confidence | None = None
    sampled: bool = False

    @property
    def mean_log_prob(self) -> float:
        """`log_prob` for each token."""
        return self.log_prob / max(1, self.num_tokens)

    @property
    def unsupported_by(self) -> tuple[str, ...]:
        """Controls without the evidence that give the same answer, case and punctuation aside."""
        return unsupported_by(self.text, self.controls)

    @property
    def supported(self) -> bool | None:
        """Whether no control without the evidence gives this answer.

        None where none was asked, and for an answer drawn at random that no control gives: two
        draws differ without any evidence.
        """
        if self.unsupported_by:
            return False
        return True if takes_evidence_away(self.controls) and not self.sampled else None

    def to_dict(self) -> dict[str, Any]:
        """All fields and verdicts, as JSON can hold them."""
        values = asdict(self) | {
            "mean_log_prob": self.mean_log_prob,
            "supported": self.supported,
            "unsupported_by": list(self.unsupported_by),
        }
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def __str__(self) -> str:
        notes = []
        if self.unsupported_by:
            notes.append(f"not supported by the activations: {_listed(self)} says the same")
        if self.confidence is not None:
            notes.append(str(self.confidence))
        return "  ".join([self.text, *(f"[{note}]" for note in notes)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td>"
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in {"answer": self.text, **self.controls}.items()
        )
        verdict = ""
        if self.unsupported_by:
            verdict = (
                "<p>Not supported by the activations: "
                f"{html.escape(_listed(self))} says the same.</p>"
            )
        if self.confidence is not None:
            verdict += f"<p>Confidence: {html.escape(str(self.confidence))}.</p>"
        return (
            f"<div><p><b>{html.escape(self.question)}</b></p>"
            f"<table><tbody>{rows}</tbody></table>{verdict}</div>"
        )


def _listed(answer: Answer) -> str:
    return ", ".join(answer.unsupported_by)


@dataclass(frozen=True, kw_only=True, repr=False)
class AnswerGrid:
    """One question about each layer and token alone.

    Attributes:
        question: What was asked.
        layers: The rows.
        positions: The columns, as positions in the target's prompt.
        tokens: The target's tokens there.
        cells: (layer, position) -> answer; those that a cancellation left out are absent.
    """

    question: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    cells: Mapping[tuple[int, int], Answer]

    def __getitem__(self, place: tuple[int, int]) -> Answer:
        """The answer at (layer, position in the prompt)."""
        if place not in self.cells:
            raise PositionError(
                f"There is no answer at (layer, position) {place}: the layers are "
                f"{list(self.layers)}, the positions {list(self.positions)}"
                + ("" if self.complete else ", and the grid was cancelled before its end")
                + "."
            )
        return self.cells[place]

    @property
    def complete(self) -> bool:
        """Whether every cell has its answer."""
        # A token asked about twice has one answer.
        return len(self.cells) == len(set(self.layers)) * len(set(self.positions))

    @property
    def text(self) -> str:
        """A table in plain text, a line for each token; answers that a control gives have a *."""
        header = ["", *(f"layer {layer}" for layer in self.layers)]
        lines = [header]
        for position, token in zip(self.positions, self.tokens, strict=True):
            cells = [self.cells.get((layer, position)) for layer in self.layers]
            lines.append([f"{position} {token!r}", *(_mark(cell) for cell in cells)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def to_pandas(self, value: str = "text") -> "pandas.DataFrame":
        """A table of layers x (position, token).

        Args:
            value: What stands in a cell: `text`, `supported`, `log_prob` or `mean_log_prob`.
        """
        import pandas

        columns = pandas.MultiIndex.from_arrays(
            [self.positions, self.tokens], names=["position", "token"]
        )
        rows = [
            [
                getattr(self.cells[layer, position], value)
                if (layer, position) in self.cells
                else None
                for position in self.positions
            ]
            for layer in self.layers
        ]
        return pandas.DataFrame(
            rows, index=pandas.Index(self.layers, name="layer"), columns=columns
        )

    def to_dict(self) -> dict[str, Any]:
        """All cells, as JSON can hold them."""
        return {
            "question": self.question,
            "layers": list(self.layers),
            "positions": list(self.positions),
            "tokens": list(self.tokens),
            "complete": self.complete,
            "cells": [cell.to_dict() for cell in self.cells.values()],
        }

    def __repr__(self) -> str:
        # Of all cells with their provenance it would be megabytes, which notebooks store.
        return (
            f"AnswerGrid({self.question!r}: layers {list(self.layers)} x {len(self.positions)} "
            f"tokens, {len(self.cells)} answers)"
        )

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        head = "".join(f"<th>layer {layer}</th>" for layer in self.layers)
        body = ""
        for position, token in zip(self.positions, self.tokens, strict=True):
            cells = "".join(
                f"<td>{html.escape(_mark(self.cells.get((layer, position))))}</td>"
                for layer in self.layers
            )
            body += (
                f"<tr><th>{position}</th><td><code>{html.escape(repr(token))}</code></td>"
                f"{cells}</tr>"
            )
        note = "" if self.complete else "<p>Cancelled before its end.</p>"
        return (
            f"<div><p><b>{html.escape(self.question)}</b></p><table><thead><tr><th></th><th></th>"
            f"{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>* a control without the activations says the same</p>{note}</div>"
        )


def _mark(answer: Answer | None) -> str:
    if answer is None:
        return "-"
    return " ".join(answer.text.split()) + ("*" if answer.unsupported_by else "")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A forced choice between candidate answers.

    Attributes:
        question: What was asked.
        log_probs: Candidate -> log-probability (nats) of it as the whole reply.
        probabilities: Candidate -> softmax of these over the candidates, which compares them with
            each other, not with everything else that the oracle could have said.
        confidence: In the likeliest candidate: its probability, calibrated where the contract holds
            a calibration. `Oracle.choose` always gives it.
        controls: Control -> the same choice there; empty where none was asked for or applies.
    """

    question: str
    log_probs: Mapping[str, float]
    probabilities: Mapping[str, float]
    confidence: Confidence | None = None
    controls: Mapping[str, "Choice"] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The likeliest candidate."""
        return max(self.probabilities, key=lambda choice: self.probabilities[choice])

    @property
    def unsupported_by(self) -> tuple[str, ...]:
        """Controls without the evidence that choose the same."""
        return tuple(
            name
            for name, control in self.controls.items()
            if name not in KEEPS_EVIDENCE and control.text == self.text
        )

    @property
    def supported(self) -> bool | None:
        """Whether no control without the evidence chooses the same; None where none was asked."""
        return not self.unsupported_by if takes_evidence_away(self.controls) else None

    def to_dict(self) -> dict[str, Any]:
        """All fields and the verdict, as JSON can hold them."""
        return asdict(self) | {
            "text": self.text,
            "controls": {name: control.to_dict() for name, control in self.controls.items()},
            "supported": self.supported,
            "unsupported_by": list(self.unsupported_by),
        }

    def __str__(self) -> str:
        return ", ".join(f"{choice}: {p:.3f}" for choice, p in self.probabilities.items())

    def _repr_html_(self) -> str:
        columns = {"": self, **self.controls}
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        rows = "".join(
            f'<tr><td style="text-align:left">{html.escape(choice)}</td>'
            + "".join(f"<td>{column.probabilities[choice]:.3f}</td>" for column in columns.values())
            + "</tr>"
            for choice in self.probabilities
        )
        if self.controls:
            rows = f"<tr><th></th>{head}</tr>{rows}"
        return f"<div><p><b>{html.escape(self.question)}</b></p><table>{rows}</table></div>"
