"""Sources -> one training set on disk: how much of each, no duplicates, a held-out split, an order.

A mixture is built once and then read by every run and every process. What decides it is written
down as a digest, so that the same mixture is opened again and a changed one is built anew. Nothing
depends on PYTHONHASHSEED, on threads or on what the folder held before.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from aotoolkit.data.example import Example
from aotoolkit.data.source import Source
from aotoolkit.data.storage import ExampleDataset, ExampleWriter
from aotoolkit.errors import MixtureError
from aotoolkit.tracing.digest import tokenizer_digest

MANIFEST_FILE = "manifest.json"
# Raised when the files on disk, or the draws that lead to them, change.
FORMAT_VERSION = 2
# An endless source of which so many groups on end give nothing new has run dry.
GROUPS_WITHOUT_NEWS = 10_000


class PromptLength(Protocol):
    """Counts the tokens of an example's oracle prompt with its answer."""

    @property
    def digest(self) -> str:
        """Of all that the counts depend on."""
        ...

    def __call__(self, example: Example) -> int:
        """Tokens of the prompt and the answer."""
        ...


class QuestionAnswerLength:
    """Question, answer and one token a vector: a prompt without the words of its contract."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.digest = "question, answer, vectors"

    def __call__(self, example: Example) -> int:
        """Tokens of question and answer, and the vectors."""
        texts = self._tokenizer([example.question, example.answer], add_special_tokens=False)
        vectors = len(example.positions) * len(example.layers)
        return vectors + sum(map(len, texts["input_ids"]))


@dataclass(frozen=True)
class Part:
    """How much of a source a mixture, or a stage of it, takes.

    Attributes:
        source: draws the examples.
        share: weight among the parts that share what is left of the mixture's `num_examples` after
            the counts; need not sum to 1.
        count: examples. Without share and count: all that the source has.
        repeats: passes over the source at most. A later pass has another seed, so that whatever the
            source draws (positions, layers, wording) it draws anew.
    """

    source: Source
    share: float | None = None
    count: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        name = self.source.name
        if self.share is not None and self.count is not None:
            raise MixtureError(
                f"The source {name!r} has share {self.share} and count {self.count}; give one."
            )
        if self.share is not None and not 0 <= self.share < math.inf:
            raise MixtureError(f"share of {name!r} is {self.share}; it must be 0 or more.")
        if self.count is not None and self.count < 1:
            raise MixtureError(f"count of {name!r} is {self.count}; it must be 1 or more.")
        if self.repeats < 1:
            raise MixtureError(f"repeats of {name!r} is {self.repeats}; it must be 1 or more.")


@dataclass(frozen=True)
class Stage:
    """Parts that are mixed with each other, before or after those of other stages.

    Attributes:
        parts: what is mixed. A source of an earlier stage goes on where that stage left it.
        share: weight of the stage among the stages, of the mixture's `num_examples`.
    """

    parts: tuple[Part, ...]
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.parts:
            raise MixtureError("A stage has no parts; give at least one.")
        if not 0 < self.share < math.inf:
            raise MixtureError(f"share of a stage is {self.share}; it must be above 0.")


@dataclass(frozen=True)
class BuiltMixture:
    """A mixture on disk.

    Attributes:
        train: in training order: stage after stage, examples of one context side by side.
        validation: the held-out examples, source after source.
        manifest: one mapping for each source, JSON, for the contract's `training_data`: name,
            examples (of training), held_out, tokens, median_tokens, max_tokens, vectors, dropped
            (by reason), digest (of the examples drawn), source (`Source.describe()`).
    """

    train: ExampleDataset
    validation: ExampleDataset
    manifest: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, folder: str | Path) -> "BuiltMixture":
        """Memory-maps a mixture that was built.

        Raises:
            MixtureError: The folder holds none.
        """
        manifest = _read_manifest(Path(folder))
        if manifest is None:
            raise MixtureError(f"{folder} holds no mixture ({MANIFEST_FILE}); build it first.")
        return cls(
            train=ExampleDataset.open(folder, "train"),
            validation=ExampleDataset.open(folder, "validation"),
            manifest=tuple(manifest["sources"]),
        )


class Mixture:
    """Sources with shares or counts, to be built on disk.

    Args:
        parts_or_stages: parts that are mixed throughout, or stages of them (a curriculum).
        num_examples: drawn in all, the held-out ones among them; needed where there are shares.
        seed: of every draw and of the order.
        held_out: examples, or a share below 1 of them, that are held out of training for
            validation, as many of each source as its part of the mixture. Whole groups are held
            out (`Example.group` and `other_groups`, and whatever shares a context), so the number
            is met as nearly as the groups allow, with at least one group of every source that owes
            an example.
        validation: parts (with count, or whole) that are only validated on. Nothing of their groups
            or contexts is trained on.
        deduplicate: drop examples that were drawn before in the same pass, whatever their source.
        max_prompt_tokens: examples with longer prompts are passed over.
        drop_longest: share of the examples, those with the longest prompts, dropped after drawing
            (0.001 in the Activation Oracles paper).

    Raises:
        MixtureError: Settings that contradict each other or add up to nothing.
    """

    def __init__(
        self,
        parts_or_stages: Sequence[Part] | Sequence[Stage],
        *,
        num_examples: int | None = None,
        seed: int = 0,
        held_out: int | float = 0,
        validation: Sequence[Part] = (),
        deduplicate: bool = True,
        max_prompt_tokens: int | None = None,
        drop_longest: float = 0.0,
    ) -> None:
        self.stages = _as_stages(parts_or_stages)
        self.num_examples = num_examples
        self.seed = seed
        self.held_out = held_out
        self.validation = tuple(validation)
        self.deduplicate = deduplicate
        self.max_prompt_tokens = max_prompt_tokens
        self.drop_longest = drop_longest
        if held_out < 0 or (isinstance(held_out, float) and not held_out < 1):
            raise MixtureError(
                f"held_out is {held_out}; it must be a number of examples or a share below 1.0."
            )
        if not 0 <= drop_longest < 1:
            raise MixtureError(f"drop_longest is {drop_longest}; it must be from 0 to below 1.")
        if max_prompt_tokens is not None and max_prompt_tokens < 1:
            raise MixtureError(f"max_prompt_tokens is {max_prompt_tokens}; it must be 1 or more.")
        self.counts = self._share_out()
        names: dict[str, Source] = {}
        for part in self._parts():
            if names.setdefault(part.source.name, part.source) is not part.source:
                raise MixtureError(
                    f"Two sources are named {part.source.name!r}; they would draw alike and be "
                    "logged as one. Name them apart."
                )
        if shared := [p for p in self.validation if p.share is not None]:
            raise MixtureError(
                f"The validation part {shared[0].source.name!r} has a share; give it a count."
            )

    @property
    def sources(self) -> dict[str, Source]:
        """By name, in the order in which they are drawn."""
        return {part.source.name: part.source for part in self._parts()}

    def _parts(self) -> Iterator[Part]:
        yield from self.validation
        for stage in self.stages:
            yield from stage.parts

    def _share_out(self) -> list[list[int | None]]:
        """The examples to draw of each part of each stage; None for all that there are."""
        if self.num_examples is None:
            for stage in self.stages:
                if len(self.stages) > 1 and stage.share != 1.0:
                    raise MixtureError("Stages with shares need num_examples, to be shares of.")
                if shared := [part for part in stage.parts if part.share is not None]:
                    raise MixtureError(
                        f"The source {shared[0].source.name!r} has a share and the mixture no "
                        "num_examples to take it of; give num_examples, or counts."
                    )
            return [[part.count for part in stage.parts] for stage in self.stages]
        totals = _apportion(self.num_examples, [stage.share for stage in self.stages])
        return [
            self._share_out_stage(stage, total)
            for stage, total in zip(self.stages, totals, strict=True)
        ]

    def _share_out_stage(self, stage: Stage, total: int) -> list[int | None]:
        counted = sum(part.count or 0 for part in stage.parts)
        shares = [part.share for part in stage.parts if part.share is not None]
        if whole := [p for p in stage.parts if p.share is None and p.count is None]:
            raise MixtureError(
                f"The source {whole[0].source.name!r} has neither share nor count, and the mixture "
                f"num_examples {self.num_examples}; give it one, or leave num_examples out."
            )
        if counted > total or (not shares and counted != total):
            raise MixtureError(
                f"The counts of a stage add up to {counted:,}, and it has {total:,} examples of "
                f"num_examples {self.num_examples:,}; change the counts or num_examples."
            )
        if shares and sum(shares) == 0:
            raise MixtureError("The shares add up to 0; give at least one source a share above 0.")
        rest = iter(_apportion(total - counted, shares) if shares else [])
        return [next(rest) if part.share is not None else part.count for part in stage.parts]

    def settings(
        self, tokenizer: PreTrainedTokenizerBase, prompt_length: PromptLength | None = None
    ) -> dict[str, Any]:
        """All that decides the mixture, as JSON; the manifest's `settings`."""

        def describe(parts: Sequence[Part]) -> list[dict[str, Any]]:
            return [
                {
                    "name": part.source.name,
                    "source": part.source.describe(),
                    "share": part.share,
                    "count": part.count,
                    "repeats": part.repeats,
                }
                for part in parts
            ]

        return {
            "format": FORMAT_VERSION,
            "tokenizer": tokenizer_digest(tokenizer),
            "prompt_length": (prompt_length or QuestionAnswerLength(tokenizer)).digest,
            "stages": [{"share": s.share, "parts": describe(s.parts)} for s in self.stages],
            "validation": describe(self.validation),
            "num_examples": self.num_examples,
            "seed": self.seed,
            "held_out": self.held_out,
            "deduplicate": self.deduplicate,
            "max_prompt_tokens": self.max_prompt_tokens,
            "drop_longest": self.drop_longest,
        }

    def build(
        self,
        folder: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase,
        progress: bool = True,
        prompt_length: PromptLength | None = None,
    ) -> BuiltMixture:
        """Draws the mixture and writes it to a folder, or opens it where it is there already.

        Written beside the folder and renamed when it is whole. A folder that holds a mixture of
        other settings is replaced; one that holds anything else is left alone.

        Args:
            folder: of this mixture alone.
            tokenizer: of the oracle; counts tokens, and its digest is among the settings.
            progress: show a bar.
            prompt_length: counts an example's tokens; the question, the answer and a token a
                vector by default.

        Raises:
            MixtureError: A source ran dry, a source cannot be split into groups, or the folder
                holds something else.
        """
        target = Path(folder)
        length = prompt_length or QuestionAnswerLength(tokenizer)
        settings = self.settings(tokenizer, length)
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if is_built(target, settings):
                return BuiltMixture.open(target)
            if target.exists() and _read_manifest(target) is None:
                raise MixtureError(
                    f"{target} exists and holds no mixture; name another folder, or remove it."
                )
            unfinished = target.with_name(f".{target.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                sources = self._write(unfinished, length, progress=progress)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            manifest = {"digest": _digest(settings), "sources": sources, "settings": settings}
            (unfinished / MANIFEST_FILE).write_text(
                json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            _replace(target, unfinished)
        return BuiltMixture.open(target)

    def _write(self, folder: Path, length: PromptLength, *, progress: bool) -> list[dict[str, Any]]:
        counts = [count for stage in self.counts for count in stage]
        counts += [part.count for part in self.validation]
        known = [count for count in counts if count is not None]
        with tqdm(
            total=sum(known) if len(known) == len(counts) else None,
            desc="mixture",
            unit=" examples",
            disable=not progress,
        ) as bar:
            drawing = _Drawing(self, folder, length, bar)
            for part in self.validation:  # first: what is validated on is not trained on
                drawing.draw(part, part.count, stage=None)
            for index, stage in enumerate(self.stages):
                for part, count in zip(stage.parts, self.counts[index], strict=True):
                    drawing.draw(part, count, stage=index)
        return drawing.finish()


@dataclass
class _SourceState:
    """How far one source was drawn, over all the parts that take of it."""

    source: Source
    repeats: int
    examples: Iterator[tuple[int, Example]]
    drawn: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)


class _Drawing:
    """One build: draws into the files, and keeps of each row only what the order needs."""

    def __init__(self, mixture: Mixture, folder: Path, length: PromptLength, bar: tqdm) -> None:
        self.mixture = mixture
        self.length = length
        self.bar = bar
        self.writer = ExampleWriter(folder)
        self.states: dict[str, _SourceState] = {}
        for part in mixture._parts():
            name = part.source.name
            repeats = max(part.repeats, self.states[name].repeats if name in self.states else 1)
            stream = self._passes(part.source, repeats)
            self.states[name] = _SourceState(part.source, repeats, stream)
        self.names = list(self.states)
        self.contexts: dict[bytes, int] = {}
        self.linked = _Components()
        self.seen: set[bytes] = set()
        self.validated_contexts: set[bytes] = set()
        self.validated_groups: set[str] = set()
        # Of each row drawn.
        self.context: list[int] = []
        self.source: list[int] = []
        self.stage: list[int | None] = []
        self.passes: list[int] = []
        self.tokens: list[int] = []
        self.vectors: list[int] = []

    def _passes(self, source: Source, repeats: int) -> Iterator[tuple[int, Example]]:
        for number in range(repeats):
            fruitless = 0
            state = self.states[source.name]
            for group in source.groups(self.mixture.seed + number):
                before = state.drawn
                for example in group:
                    yield number, example
                fruitless = 0 if state.drawn > before else fruitless + 1
                if fruitless >= GROUPS_WITHOUT_NEWS:
                    return

    def draw(self, part: Part, count: int | None, *, stage: int | None) -> None:
        """Takes `count` new examples of a part's source, or all that it has."""
        if count == 0:
            return
        state = self.states[part.source.name]
        taken = 0
        while count is None or taken < count:
            number, example = next(state.examples, (0, None))
            if example is None:
                break
            if self._take(state, example, number, stage):
                taken += 1
        if not state.drawn or (count is not None and taken < count):
            raise MixtureError(self._ran_dry(state, missing=(count or 1) - taken))

    def _ran_dry(self, state: _SourceState, *, missing: int) -> str:
        dropped = "".join(
            f", {number:,} dropped as {reason}" for reason, number in state.dropped.items()
        )
        times = f" in {state.repeats} passes" if state.repeats > 1 else ""
        text = f"The source {state.source.name!r} has {state.drawn:,} examples{times}{dropped}"
        if not state.drawn:
            return f"{text}; look at its data and settings, or take it out of the mixture."
        enough = math.ceil(state.repeats * (state.drawn + missing) / state.drawn)
        return (
            f"{text}, and {state.drawn + missing:,} are asked for. Lower its count (or share, or "
            f"num_examples), or raise its repeats to {enough}."
        )

    def _take(self, state: _SourceState, example: Example, number: int, stage: int | None) -> bool:
        ids = np.asarray(example.context_ids, dtype="<i4").tobytes()
        context = hashlib.blake2b(ids, digest_size=16).digest()
        groups = [group for group in (example.group, *example.other_groups) if group]
        if stage is None:
            self.validated_contexts.add(context)
            self.validated_groups.update(groups)
        elif context in self.validated_contexts or not self.validated_groups.isdisjoint(groups):
            state.dropped["validated on"] += 1
            return False
        digest = _example_digest(example, context)
        if self.mixture.deduplicate:
            key = digest + number.to_bytes(4, "little")
            if key in self.seen:
                state.dropped["duplicate"] += 1
                return False
            self.seen.add(key)
        tokens = self.length(example)
        if tokens > (self.mixture.max_prompt_tokens or math.inf):
            state.dropped["longer than max_prompt_tokens"] += 1
            return False
        if context not in self.contexts:
            self.contexts[context] = len(self.contexts)
            self.writer.add_context(example.context_ids)
        index = self.contexts[context]
        for group in groups:
            self.linked.join(index, group)
        self.writer.add(example, context=index, num_tokens=tokens)
        self.context.append(index)
        self.source.append(self.names.index(state.source.name))
        self.stage.append(stage)
        self.passes.append(number)
        self.tokens.append(tokens)
        self.vectors.append(len(example.positions) * len(example.layers))
        state.drawn += 1
        state.digest.update(digest)
        self.bar.update()
        return True

    def finish(self) -> list[dict[str, Any]]:
        """Drops the longest, holds out, orders, writes; returns the manifest's sources."""
        rows = self._without_longest()
        component = [self.linked.find(context) for context in self.context]
        held_out = self._held_out([r for r in rows if self.stage[r] is not None], component)
        held_out |= {component[row] for row in rows if self.stage[row] is None}
        train, validation = [], []
        for row in rows:
            if self.stage[row] is None or component[row] in held_out:
                validation.append(row)
            else:
                train.append(row)
        if not train:
            raise MixtureError("Nothing is left to train on; hold out less, or drop less.")
        validation.sort(key=lambda row: (self.source[row], row))
        self.writer.write_ordered(train=self._training_order(train), validation=validation)
        return self._manifest(train, validation)

    def _without_longest(self) -> list[int]:
        rows = range(len(self.tokens))
        number = int(self.mixture.drop_longest * len(rows))
        longest = sorted(rows, key=lambda row: (-self.tokens[row], row))[:number]
        for row in longest:
            self.states[self.names[self.source[row]]].dropped["longest"] += 1
        return sorted(set(rows) - set(longest))

    def _held_out(self, rows: Sequence[int], component: Sequence[int]) -> set[int]:
        """The components of groups that are held out, whole."""
        total = Counter(self.source[row] for row in rows)
        wanted = self.mixture.held_out
        number = wanted if isinstance(wanted, int) else round(wanted * len(rows))
        if number and number >= len(rows):
            raise MixtureError(
                f"held_out is {wanted} of {len(rows):,} examples; leave some to train on."
            )
        owed = dict(zip(total, _apportion(number, list(total.values())), strict=True))
        sizes: dict[int, Counter[int]] = {}
        for row in rows:
            sizes.setdefault(component[row], Counter())[self.source[row]] += 1
        shuffled = list(sizes)
        random.Random(f"{self.mixture.seed}/held_out").shuffle(shuffled)
        chosen: set[int] = set()
        held: Counter[int] = Counter()
        for group in shuffled:
            if all(held[source] + size <= owed[source] for source, size in sizes[group].items()):
                chosen.add(group)
                held.update(sizes[group])
        for source in total:
            if not owed[source] or held[source]:
                continue
            # No group was small enough: the smallest that there is, if enough is left.
            group = min((g for g in shuffled if source in sizes[g]), key=lambda g: sizes[g][source])
            if 2 * sizes[group][source] > total[source]:
                raise MixtureError(
                    f"Of the source {self.names[source]!r} {owed[source]} examples are to be held "
                    f"out, and its smallest group has {sizes[group][source]:,} of its "
                    f"{total[source]:,}. Give it more groups, or hold nothing out and name "
                    "validation sources instead."
                )
            chosen.add(group)
            held.update(sizes[group])
        return chosen

    def _training_order(self, rows: Sequence[int]) -> list[int]:
        """Stage after stage; within one, contexts in random order, each with all its examples."""
        order: list[int] = []
        for stage in range(len(self.mixture.stages)):
            blocks: dict[tuple[int, int], list[int]] = {}
            for row in rows:
                if self.stage[row] == stage:
                    blocks.setdefault((self.passes[row], self.context[row]), []).append(row)
            shuffled = list(blocks.values())
            random.Random(f"{self.mixture.seed}/order/{stage}").shuffle(shuffled)
            order += [row for block in shuffled for row in block]
        return order

    def _manifest(self, train: list[int], validation: list[int]) -> list[dict[str, Any]]:
        by_source: dict[int, list[int]] = {}
        for row in train:
            by_source.setdefault(self.source[row], []).append(row)
        held_out = Counter(self.source[row] for row in validation)
        entries = []
        for index, state in enumerate(self.states.values()):
            rows = by_source.get(index, [])
            tokens = [self.tokens[row] for row in rows]
            entries.append(
                {
                    "name": state.source.name,
                    "examples": len(rows),
                    "held_out": held_out[index],
                    "tokens": sum(tokens),
                    "median_tokens": median(tokens) if tokens else 0,
                    "max_tokens": max(tokens, default=0),
                    "vectors": sum(self.vectors[row] for row in rows),
                    "contexts": len({self.context[row] for row in rows}),
                    "dropped": dict(state.dropped),
                    "digest": state.digest.hexdigest(),
                    "source": state.source.describe(),
                }
            )
        return entries


class _Components:
    """Contexts that are linked by a common group (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._of_group: dict[str, int] = {}

    def join(self, context: int, group: str) -> None:
        first = self.find(self._of_group.setdefault(group, context))
        second = self.find(context)
        self._parent[max(first, second)] = min(first, second)

    def find(self, context: int) -> int:
        root = context
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while context != root:
            self._parent[context], context = root, self._parent[context]
        return root


def is_built(folder: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds the mixture of these settings (`Mixture.settings`)."""
    manifest = _read_manifest(Path(folder))
    return manifest is not None and manifest["digest"] == _digest(settings)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        with contextlib.suppress(json.JSONDecodeError):
            manifest = json.loads(text)
            if isinstance(manifest, dict) and {"digest", "sources", "settings"} <= set(manifest):
                return manifest
    return None


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _example_digest(example: Example, context: bytes) -> bytes:
    told = (
        example.positions,
        example.layers,
        example.question,
        example.answer,
        example.evidence,
        example.choices,
    )
    return hashlib.blake2b(context + repr(told).encode(), digest_size=16).digest()


def _replace(target: Path, finished: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(finished, target)
    shutil.rmtree(old, ignore_errors=True)


def _as_stages(parts_or_stages: Sequence[Part] | Sequence[Stage]) -> tuple[Stage, ...]:
    stages = [item for item in parts_or_stages if isinstance(item, Stage)]
    parts = [item for item in parts_or_stages if isinstance(item, Part)]
    if (not stages and not parts) or len(stages) + len(parts) != len(parts_or_stages):
        raise MixtureError("A mixture is made of Part or of Stage objects, at least one.")
    if stages and parts:
        raise MixtureError("Parts and stages cannot be mixed; put the parts into a Stage.")
    return tuple(stages) if stages else (Stage(tuple(parts)),)


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, by the largest remainder."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
