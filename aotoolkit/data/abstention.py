"""Abstention: where there is nothing to read, the answer is that one can't tell.

An oracle that only ever sees vectors with an answer in them learns to answer whatever it is given,
and makes answers up where there is nothing to read. So a share of the questions of other sources
is asked of zero vectors, of random ones, or of those of an unrelated text.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from aotoolkit.data.context_prediction import ContextPrediction
from aotoolkit.data.example import Example
from aotoolkit.data.source import Source, group_rng
from aotoolkit.errors import DataError

AbstentionKind = Literal["zero", "random", "unrelated"]

ABSTENTION_ANSWER = "I can't tell from these activations."

# Groups among which the unrelated text of a question is looked for.
_WINDOW = 32


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """Other sources with a share of their examples turned into abstentions; a `Source`.

    An abstention keeps the question and the layers of its example. Its vectors are zero or random,
    as many as were to be read; or, "unrelated", those that another group reads. That group is one
    of another context in which the same question is not asked: what is asked of two texts can be
    answered from either. Questions of context prediction can be answered from any text, so they are
    never asked of an unrelated one.

    Attributes:
        name: unique in a mixture; the `source` of the abstentions, and of no other example.
        sources: what is wrapped; their groups take turns until each is exhausted.
        share: part of the examples that are turned, in expectation. With 1 only abstentions come
            out, and the share of this part in the mixture is theirs.
        kinds: what stands in for the evidence, equally often where all are possible.
        answer: what the oracle should say.
    """

    name: str
    sources: tuple[Source, ...]
    share: float
    kinds: tuple[AbstentionKind, ...] = ("zero", "random", "unrelated")
    answer: str = ABSTENTION_ANSWER

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError(f"{self.name!r} wraps no source. Give at least one.")
        if not 0 < self.share <= 1:
            raise DataError(f"share of {self.name!r} is {self.share}; expected above 0, up to 1.")
        if not self.kinds or set(self.kinds) - set(get_args(AbstentionKind)):
            raise DataError(
                f"kinds of {self.name!r} is {self.kinds}; expected some of "
                f"{get_args(AbstentionKind)}."
            )
        for source in self.sources:
            if not self._kinds_of(source):
                raise DataError(
                    f"{self.name!r} would ask the questions of {source.name!r} of unrelated texts, "
                    "from which they can be answered too. Add 'zero' or 'random' to kinds."
                )

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """The groups of the sources, some of their examples turned, lazily.

        Raises:
            DataError: kinds is "unrelated" alone, and no group has another context and other
                questions.
        """
        numbered = enumerate(_take_turns(self.sources, seed))
        block = list(itertools.islice(numbered, _WINDOW))
        while block:
            following = list(itertools.islice(numbered, _WINDOW))
            if len(following) == 1:  # alone it would have no other group
                block, following = block + following, []
            for index, (source, group) in block:
                yield from self._turned(
                    group,
                    self._kinds_of(source),
                    [other for _, (_, other) in block],
                    group_rng(seed, self.name, index),
                )
            block = following

    def describe(self) -> dict[str, object]:
        """Settings and what is wrapped, for the manifest."""
        return {
            "kind": "abstention",
            "name": self.name,
            "share": self.share,
            "kinds": self.kinds,
            "answer": self.answer,
            "sources": [source.describe() for source in self.sources],
        }

    def _kinds_of(self, source: Source) -> tuple[AbstentionKind, ...]:
        if isinstance(source, ContextPrediction):
            return tuple(kind for kind in self.kinds if kind != "unrelated")
        return self.kinds

    def _turned(
        self,
        group: list[Example],
        kinds: tuple[AbstentionKind, ...],
        others: list[list[Example]],
        rng: random.Random,
    ) -> Iterator[list[Example]]:
        kept: list[Example] = []
        unrelated: list[Example] = []
        for example in group:
            if rng.random() >= self.share:
                kept.append(example)
                continue
            blank = dataclasses.replace(example, answer=self.answer, choices=(), source=self.name)
            eligible = [other for other in others if _is_unrelated(example, other)]
            possible = [kind for kind in kinds if kind != "unrelated" or eligible]
            if not possible:
                raise DataError(
                    f"{self.name!r} finds no unrelated text for the question "
                    f"{example.question!r}: every other text near it is asked the same, so it can "
                    "be answered from each. Add 'zero' or 'random' to kinds."
                )
            kind = rng.choice(possible)
            if kind == "unrelated":
                evidence = rng.choice(rng.choice(eligible))
                unrelated.append(
                    dataclasses.replace(
                        blank,
                        context_ids=evidence.context_ids,
                        positions=evidence.positions,
                        group=evidence.group,
                        other_groups=evidence.other_groups,
                    )
                )
            else:
                kept.append(dataclasses.replace(blank, evidence=kind))
        if kept:
            yield kept
        # Each has the context of another group, so it is a group of its own.
        for example in unrelated:
            yield [example]


def _take_turns(sources: tuple[Source, ...], seed: int) -> Iterator[tuple[Source, list[Example]]]:
    running = [(source, source.groups(seed)) for source in sources]
    while running:
        left = []
        for source, groups in running:
            group = next(groups, None)
            if group is not None:
                left.append((source, groups))
                yield source, group
        running = left


def _is_unrelated(example: Example, group: list[Example]) -> bool:
    return all(
        other.context_ids != example.context_ids
        and other.question != example.question
        and not _groups_of(example) & _groups_of(other)
        for other in group
    )


def _groups_of(example: Example) -> set[str]:
    return {example.group, *example.other_groups} - {""}
