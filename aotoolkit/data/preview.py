"""Training data as a person looks at it: examples with what is read marked, and what there is.

Whether an example can be answered from the tokens that are read, and whether the right ones are
read at all, is seen at a glance here and nowhere else.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from aotoolkit.data.example import Example
from aotoolkit.data.mixture import BuiltMixture
from aotoolkit.data.source import Source

# Tokens shown on both sides of what is read.
TOKENS_AROUND = 40
OPEN, CLOSE = "⟦", "⟧"


def draw_examples(source: Source, count: int, *, seed: int = 0) -> list[Example]:
    """The first examples that a source draws, at most one of each context."""
    groups = (group for group in source.groups(seed) if group)
    return [
        group[index % len(group)] for index, group in enumerate(itertools.islice(groups, count))
    ]


def preview(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """An example, the tokens that are read between ⟦ and ⟧ and in reverse video.

    Args:
        example: what to show.
        tokenizer: of the target model.
    """
    layers = ", ".join(map(str, example.layers))
    plural = "s" if len(example.layers) > 1 else ""
    shown = Text.assemble((f"{example.source}", "bold"), f"  layer{plural} {layers}")
    shown.append(f", {len(example.positions)} of {len(example.context_ids)} tokens")
    if example.evidence != "read":
        shown.append(f", {example.evidence} vectors instead of what is read")
    shown.append("\n")
    for text, is_read in _runs(example, tokenizer):
        if is_read:
            shown.append(f"{OPEN}{text}{CLOSE}", "reverse")
        else:
            shown.append(text)
    shown.append("\nQ: ", "bold").append(_printable(example.question))
    shown.append("\nA: ", "bold").append(_printable(example.answer))
    if example.choices:
        shown.append(f"  (of {', '.join(map(_printable, example.choices))})", "dim")
    return shown


def _runs(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool]]:
    """The context around what is read, in pieces that are read or not."""
    read = set(example.positions)
    near = [
        any(abs(index - p) <= TOKENS_AROUND for p in (example.positions[0], example.positions[-1]))
        or index in read
        for index in range(len(example.context_ids))
    ]
    keys = [(near[index], index in read) for index in range(len(near))]
    for (is_near, is_read), run in itertools.groupby(range(len(near)), key=keys.__getitem__):
        indices = list(run)
        if is_near:
            ids = [example.context_ids[index] for index in indices]
            yield _printable(str(tokenizer.decode(ids))), is_read
        else:
            yield f" [... {len(indices):,} tokens ...] ", False


def stats_table(mixture: BuiltMixture) -> Table:
    """What a mixture holds, source by source, in the form of the papers' tables."""
    manifest = mixture.manifest
    table = Table()
    table.add_column("source")
    for name in ("examples", "share", "tokens", "median", "max", "held out"):
        table.add_column(name, justify="right")
    total = sum(entry["examples"] for entry in manifest)
    for entry in manifest:
        table.add_row(
            _printable(entry["name"]),
            f"{entry['examples']:,}",
            f"{entry['examples'] / total:.1%}",
            f"{entry['tokens']:,}",
            f"{entry['median_tokens']:g}",
            f"{entry['max_tokens']:,}",
            f"{entry['held_out']:,}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{total:,}",
        "",
        f"{sum(entry['tokens'] for entry in manifest):,}",
        f"{np.median(mixture.train.num_tokens):g}",
        f"{max(entry['max_tokens'] for entry in manifest):,}",
        f"{sum(entry['held_out'] for entry in manifest):,}",
    )
    return table


def _printable(text: str) -> str:
    """On few lines and without control characters: data must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
