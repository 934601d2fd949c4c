"""Which layer, positions, coefficient and temperature an oracle answers best with.

An oracle is trained on several layers and on spans of many widths, and nothing in its training says
which of them to read. So they are tried, on examples that it was not trained on, by the same
`Oracle.ask` that will be used. Beside every setting stand the answers to the same questions without
activations: a setting that answers no better than that reads nothing.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from tqdm.auto import tqdm

from aotoolkit.atomic import replacing
from aotoolkit.data.example import Example
from aotoolkit.errors import ContractError, SweepError, UntrainedLayerWarning
from aotoolkit.evals.statistics import Estimate, bootstrap_mean
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.contract import Recommended, Window, is_window
from aotoolkit.oracle.controls import normalise
from aotoolkit.tracing import Activations, TracedModel
from aotoolkit.tracing.activations import Layer, resolve_layers

if TYPE_CHECKING:
    import pandas

    from aotoolkit.data.mixture import BuiltMixture

Match = Literal["exact", "word"]

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.csv"
_FORMAT = 1
_CONTEXTS_READ_AT_ONCE = 16
_RESAMPLES = 2_000
_FOLDS = 5
# A reply may be longer than the longest answer before it is cut.
_TOKENS_TO_SPARE = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tried.

    Attributes:
        layers: Blocks that are read; one prefix block of the prompt each.
        window: How many of the last positions of each example; "all" for its whole span.
        coefficient: Of the injection.
        temperature: Of sampling; 0 is greedy.
    """

    layers: tuple[int, ...]
    window: Window
    coefficient: float
    temperature: float

    def __str__(self) -> str:
        layers = "+".join(map(str, self.layers))
        read = "whole span" if self.window == "all" else f"last {self.window}"
        how = "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
        return f"layer {layers}, {read}, coefficient {self.coefficient:g}, {how}"


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One setting's figures; each is a mean over groups of examples with a bootstrap interval.

    Attributes:
        setting: What was tried.
        num_examples: How many examples; the `n` of the figures counts their groups.
        exact_match: Share of replies that are the answer; case, punctuation, articles aside.
        word_match: Share of replies in which the answer's words stand, in a row.
        exact_match_without: `exact_match` of the replies to the same prompts without activations.
        word_match_without: `word_match` of these.
        exact_match_gain: With minus without, paired by example.
        word_match_gain: See `exact_match_gain`.
        replies: The reply to each example.
        replies_without: That without activations.
    """

    setting: Setting
    num_examples: int
    exact_match: Estimate
    word_match: Estimate
    exact_match_without: Estimate
    word_match_without: Estimate
    exact_match_gain: Estimate
    word_match_gain: Estimate
    replies: tuple[str, ...]
    replies_without: tuple[str, ...]

    def figures(self, match: Match) -> tuple[Estimate, Estimate, Estimate]:
        """With activations, without them, and the difference."""
        return tuple(getattr(self, f"{match}_match{end}") for end in ("", "_without", "_gain"))


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Figures of all settings that were tried.

    Attributes:
        cells: One for each setting, in the order in which they were tried.
        match: By which figure the best is chosen.
        answers: The right answer to each example.
        groups: The group of each example: what counts as one draw in the intervals.
        identity: What was swept: digests of base, weights, contract and examples, and how long
            replies may be. Sweeps of one identity can be put together.
    """

    cells: tuple[SweepCell, ...]
    match: Match
    answers: tuple[str, ...]
    groups: tuple[int, ...]
    identity: Mapping[str, Any]

    @property
    def best(self) -> SweepCell:
        """The cell with the highest share of right replies; the first tried of equal ones.

        The best of many looks better than it is: its figure is partly luck. `expected` is not.
        """
        return max(self.cells, key=lambda cell: cell.figures(self.match)[0].mean)

    @property
    def expected(self) -> Estimate:
        """The share of right replies to be expected of the setting that is chosen in this way.

        Cross-validated: groups are dealt into folds, and each fold is scored by the setting that is
        best on the other folds. A single group has no others; then it is the best cell's figure.
        """
        return self._cross_validated(gain=False)

    @property
    def expected_gain(self) -> Estimate:
        """What activations add to that share: `expected` minus without them, paired by group."""
        return self._cross_validated(gain=True)

    def _cross_validated(self, *, gain: bool) -> Estimate:
        members = _members(self.groups)
        if len(members) == 1:
            return self.best.figures(self.match)[2 if gain else 0]
        folds = min(_FOLDS, len(members))
        right = [self._by_group(cell.replies, members) for cell in self.cells]
        scores = right
        if gain:
            without = [self._by_group(cell.replies_without, members) for cell in self.cells]
            scores = [
                [own - bare for own, bare in zip(*both, strict=True)]
                for both in zip(right, without, strict=True)
            ]
        units: list[list[float]] = []
        for fold in range(folds):
            others = [group for group in range(len(members)) if group % folds != fold]
            chosen = max(
                range(len(right)), key=lambda cell: sum(right[cell][group] for group in others)
            )
            units += [[scores[chosen][group]] for group in range(fold, len(members), folds)]
        return bootstrap_mean(
            units,
            resamples=_RESAMPLES,
            unit="group",
            bounds=(-1.0, 1.0) if gain else (0.0, 1.0),
        )

    def _by_group(self, replies: Sequence[str], members: Sequence[Sequence[int]]) -> list[float]:
        """The share of right replies in each group."""
        right = [_matches(self.match, r, a) for r, a in zip(replies, self.answers, strict=True)]
        return [sum(right[i] for i in unit) / len(unit) for unit in members]

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each setting: the setting, and of each figure mean, low and high end, and n."""
        import pandas

        rows = []
        for cell in self.cells:
            row: dict[str, Any] = dataclasses.asdict(cell.setting)
            row["layers"] = "+".join(map(str, cell.setting.layers))
            for name, figure in _figures(cell).items():
                row |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
            row |= {"num_groups": cell.exact_match.n, "num_examples": cell.num_examples}
            rows.append(row)
        return pandas.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the replies, as JSON can hold it."""
        return {
            "match": self.match,
            "identity": dict(self.identity),
            "best": _cell_values(self.best, replies=False),
            "expected": dataclasses.asdict(self.expected),
            "expected_gain": dataclasses.asdict(self.expected_gain),
            "cells": [_cell_values(cell, replies=False) for cell in self.cells],
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `sweep.json` (everything) and `sweep.csv` (the table), each whole or not at all.

        Returns:
            The folder.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        values = {
            "format": _FORMAT,
            "match": self.match,
            "identity": dict(self.identity),
            "answers": self.answers,
            "groups": self.groups,
            "cells": [_cell_values(cell, replies=True) for cell in self.cells],
        }
        with replacing(target / SWEEP_FILE) as temporary:
            text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
        with replacing(target / TABLE_FILE) as temporary:
            self.to_pandas().to_csv(temporary, index=False)
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote, or what an unfinished sweep has written so far.

        Raises:
            SweepError: There is no sweep, or it is damaged.
        """
        path = Path(folder) / SWEEP_FILE
        if not path.is_file():
            raise SweepError(f"There is no sweep in {folder}: {path} does not exist.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise ValueError(f"its format is {values['format']!r}, this aotoolkit reads 1")
            answers, groups = tuple(values["answers"]), tuple(values["groups"])
            return cls(
                cells=tuple(_cell_of(cell, answers, groups) for cell in values["cells"]),
                match=values["match"],
                answers=answers,
                groups=groups,
                identity=values["identity"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SweepError(
                f"{path} is damaged ({error!r}). Delete it and sweep again."
            ) from error


def sweep(
    oracle: Oracle,
    examples: "Sequence[Example] | BuiltMixture",
    *,
    layers: Sequence[Layer | Sequence[Layer]] | None = None,
    windows: Sequence[Window] = (1, 10, "all"),
    coefficients: Sequence[float] | None = None,
    temperatures: Sequence[float] = (0.0,),
    match: Match = "exact",
    sources: Sequence[str] | None = None,
    max_examples: int | None = None,
    max_new_tokens: int | None = None,
    max_batch: int = 128,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Answers held-out examples with every combination of layers, window, coefficient, temperature.

    The activations are the base's, as in training. The replies without activations do not depend on
    window and coefficient, so they are generated once for each choice of layers and temperature.

    A window takes the last positions of those that an example reads. Where the right answer depends
    on which positions are read (as in context prediction: "the 5 tokens before these"), a narrower
    window asks something else than the answer answers: leave such sources out by `sources`.

    Args:
        oracle: The oracle.
        examples: Held-out examples, or a built mixture, whose held-out examples are taken. What
            layers they name does not matter. Those with made vectors (`evidence` zero or random)
            are left out.
        layers: Blocks, fractions of depth, or tuples of them for prompts with several layers. By
            default each of the contract's read layers, and all together where a prompt holds
            several.
        windows: How many of the last positions; "all" for an example's whole span. One that for
            every example is the same as another is tried once.
        coefficients: Of the injection; by default the one that the oracle was trained with.
        temperatures: 0 is greedy.
        match: By which figure the best is chosen: `exact` or `word`; see `SweepCell`.
        sources: Only examples of these sources.
        max_examples: About as many of them: groups drawn at random until there are enough. By
            default all. The vectors that all settings need are held in memory.
        max_new_tokens: Longest reply; by default a little longer than the longest answer.
        max_batch: Most prompts in one batch.
        seed: Of drawing groups and of sampling; the same for every setting.
        folder: Where every finished setting is written, and from where a sweep goes on that was
            stopped or is now wider; by default nowhere.
        progress: Show a bar.

    Raises:
        SweepError: There is nothing to try, a setting makes no sense, or the folder holds the sweep
            of another oracle or of other examples.
        LayerError: A layer does not exist, or the oracle's transform has no statistics of it.
        ContextLengthError, QuestionError: See `Oracle.ask`.
    """
    if match not in get_args(Match):
        raise SweepError(f"match is {match!r}; allowed are {', '.join(get_args(Match))}.")
    chosen = _chosen(examples, sources)
    if max_examples is not None:
        chosen = _some_groups(chosen, max_examples, seed)
    settings = _settings(oracle, chosen, layers, windows, coefficients, temperatures)
    answers, groups = tuple(example.answer for example in chosen), _groups(chosen)
    if max_new_tokens is None:
        encoded = oracle.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        max_new_tokens = max(map(len, encoded)) + _TOKENS_TO_SPARE  # pyright: ignore[reportArgumentType]
    result = SweepResult(
        cells=(),
        match=match,
        answers=answers,
        groups=groups,
        identity=_identity(oracle, chosen, max_new_tokens=max_new_tokens, seed=seed),
    )
    known = {} if folder is None else _continued(folder, result)
    missing = [setting for setting in settings if setting not in known]
    if missing:
        every_layer = sorted({layer for setting in missing for layer in setting.layers})
        read = list(_read(oracle.model, chosen, tuple(every_layer)))
        questions = [example.question for example in chosen]
        for setting in tqdm(missing, "sweep", unit="setting", disable=not progress):
            said = _without(setting, known.values())
            replies, said = _ask(
                oracle, questions, read, setting, said, max_new_tokens, max_batch, seed
            )
            known[setting] = _cell(setting, answers, groups, replies, said)
            if folder is not None:
                dataclasses.replace(result, cells=tuple(known.values())).save(folder)
    return dataclasses.replace(result, cells=tuple(known[setting] for setting in settings))


def apply_recommended(oracle_folder: str | os.PathLike[str], result: SweepResult) -> Recommended:
    """Writes the best setting into the contract of an oracle's folder, which `ask` then goes by.

    Args:
        oracle_folder: As `Oracle.save_pretrained` wrote it, of the oracle that was swept.
        result: The sweep.

    Raises:
        ContractError: The folder has no contract.
        SweepError: The folder holds another oracle, the sweep has one group of examples, or the
            setting chosen is not surely better than the oracle without activations: the 95 %
            interval of `SweepResult.expected_gain` holds 0. The best of many settings is above 0
            by luck alone.
    """
    folder = Path(oracle_folder)
    contract = OracleContract.read(folder)
    expected, found = result.identity["contract"], _contract_digest(contract)
    if found != expected:
        raise SweepError(
            f"{folder} holds another oracle (contract {found[:12]}) than the one that was swept "
            f"({expected[:12]}). Give the folder of that oracle, or sweep this one."
        )
    best = result.best
    right, without, gain = best.figures(result.match)
    expected_gain = result.expected_gain
    if len(set(result.groups)) == 1:
        raise SweepError(
            "All examples of the sweep are of one group, so nothing says how a setting does on "
            "others, and none can be recommended. Sweep examples of several groups."
        )
    if expected_gain.low <= 0:
        raise SweepError(
            f"The best setting ({best.setting}) is right in {right} of its replies and in "
            f"{without} without any activations; on other examples a gain of {expected_gain} is "
            "to be expected of a setting chosen like this, which may be none. So nothing shows "
            "that the oracle reads anything here, and no setting can be recommended. Sweep more "
            "examples or other layers, or train the oracle longer."
        )
    setting = best.setting
    recommended = Recommended(
        layers=setting.layers,
        window=setting.window,
        coefficient=setting.coefficient,
        temperature=setting.temperature,
    )
    measured = {
        "match": result.match,
        "examples": best.num_examples,
        "settings_tried": len(result.cells),
        "share": dataclasses.asdict(right),
        "share_without_activations": dataclasses.asdict(without),
        "gain": dataclasses.asdict(gain),
        "expected_share": dataclasses.asdict(result.expected),
        "expected_gain": dataclasses.asdict(expected_gain),
    }
    extra = {**contract.extra, **recommended.to_extra(), "sweep": measured}
    dataclasses.replace(contract, extra=extra).write(folder)
    return recommended


# What is tried


def _chosen(
    examples: "Sequence[Example] | BuiltMixture", sources: Sequence[str] | None
) -> list[Example]:
    given = examples if isinstance(examples, Sequence) else examples.validation
    found: dict[tuple[Any, ...], Example] = {}
    there: set[str] = set()
    for example in given:
        there.add(example.source)
        # Examples that differ in their layers alone become one: the layers are what is tried.
        key = (example.context_ids, example.positions, example.question, example.answer)
        if example.evidence == "read" and (sources is None or example.source in sources):
            found.setdefault(key, example)
    if unknown := sorted(set(sources or ()) - there):
        raise SweepError(f"No example has the source {unknown[0]!r}; there are {sorted(there)}.")
    if not found:
        raise SweepError(
            f"Of {len(given)} examples none is left whose vectors are read from the base; give "
            "held-out examples with evidence 'read'."
        )
    return list(found.values())


def _some_groups(examples: list[Example], count: int, seed: int) -> list[Example]:
    """Whole groups, drawn at random, until there are `count` examples; in their order."""
    if count < 1:
        raise SweepError(f"max_examples is {count}; give 1 or more.")
    members = _members(_groups(examples))
    random.Random(seed).shuffle(members)
    drawn: list[int] = []
    for group in members:
        if len(drawn) >= count:
            break
        drawn += group
    return [examples[index] for index in sorted(drawn)]


def _settings(
    oracle: Oracle,
    examples: Sequence[Example],
    layers: Sequence[Layer | Sequence[Layer]] | None,
    windows: Sequence[Window],
    coefficients: Sequence[float] | None,
    temperatures: Sequence[float],
) -> list[Setting]:
    contract = oracle.contract
    several = contract.layers_per_prompt == "several"
    if layers is None:
        layers = list(contract.read_layers)
        if several and len(layers) > 1:
            layers = [contract.read_layers, *layers]
    read = [resolve_layers(choice, oracle.model.num_layers) for choice in layers]
    if not several and (wide := [choice for choice in read if len(choice) > 1]):
        raise SweepError(f"This oracle takes one layer in a prompt, layers names {list(wide[0])}.")
    if coefficients is None:
        coefficients = [contract.coefficient]
    for name, values, allowed, fits in (
        ("windows", windows, 'numbers of tokens from 1 on, or "all"', is_window),
        ("coefficients", coefficients, "finite numbers", _is_finite),
        ("temperatures", temperatures, "numbers from 0 on", lambda t: _is_finite(t) and t >= 0),
        ("layers", read, "layers", bool),
    ):
        if isinstance(values, str) or not values or not all(map(fits, values)):
            raise SweepError(f"{name} is {values!r}; give one or more {allowed}.")
        if len(set(values)) < len(values):
            raise SweepError(f"{name} is {list(values)}, which names one twice.")
    for coefficient in coefficients:
        try:
            dataclasses.replace(contract, coefficient=float(coefficient))
        except ContractError as error:
            raise SweepError(f"coefficients is {list(coefficients)}: {error}") from error
    tried = itertools.product(read, _different(windows, examples), coefficients, temperatures)
    return [
        Setting(layers=own, window=window, coefficient=float(c), temperature=float(t))
        for own, window, c, t in tried
    ]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _different(windows: Sequence[Window], examples: Sequence[Example]) -> list[Window]:
    """The windows without those that read nothing else than another one; "all" stays."""
    widths = [len(example.positions) for example in examples]
    read: dict[tuple[int, ...], Window] = {}
    for window in windows:
        width = tuple(n if window == "all" else min(window, n) for n in widths)
        if window == "all" or width not in read:
            read[width] = window
    return list(read.values())


def _groups(examples: Sequence[Example]) -> tuple[int, ...]:
    """The group of each example, counted from 0 in order of first appearance."""
    numbers: dict[Any, int] = {}
    return tuple(numbers.setdefault(e.group or e.context_ids, len(numbers)) for e in examples)


def _members(groups: Sequence[int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return list(members.values())


def _identity(
    oracle: Oracle, examples: Sequence[Example], *, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    sha = hashlib.sha256()
    for e in examples:
        sha.update(repr((e.context_ids, e.positions, e.question, e.answer, e.group)).encode())
    model, adapter = oracle.model, oracle.adapter
    return {
        "base": model.base_digest,
        "adapter": None if adapter is None else model.adapter_digest(adapter),
        "contract": _contract_digest(oracle.contract),
        "examples": sha.hexdigest(),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }


def _contract_digest(contract: OracleContract) -> str:
    """Of what training decided: recommendations, figures and calibrations may be written later."""
    return dataclasses.replace(contract, extra={}, calibrations=()).digest


def _continued(folder: str | os.PathLike[str], result: SweepResult) -> dict[Setting, SweepCell]:
    """The settings that a folder has already."""
    if not (Path(folder) / SWEEP_FILE).exists():
        return {}
    earlier = SweepResult.load(folder)
    differ = [
        name for name in result.identity if earlier.identity.get(name) != result.identity[name]
    ]
    if differ:
        raise SweepError(
            f"{folder} holds another sweep: {', '.join(differ)} differ. Choose another folder, or "
            "delete it."
        )
    return {cell.setting: cell for cell in earlier.cells}


# Trying it


def _read(
    model: TracedModel, examples: Sequence[Example], layers: tuple[int, ...]
) -> Iterator[Activations]:
    """What each example reads, of the base, in order; one forward for all that share a context."""
    contexts = list(dict.fromkeys(example.context_ids for example in examples))
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_context.setdefault(example.context_ids, []).append(index)
    found: dict[int, Activations] = {}
    for start in range(0, len(contexts), _CONTEXTS_READ_AT_ONCE):
        chunk = contexts[start : start + _CONTEXTS_READ_AT_ONCE]
        whole = model.activations([list(ids) for ids in chunk], layers=layers)
        for ids, acts in zip(chunk, whole, strict=True):
            # Indexing copies, so the rest of the context's vectors can be freed.
            found |= {i: acts.at(examples[i].positions) for i in by_context[ids]}
    for index in range(len(examples)):
        yield found[index]


def _without(setting: Setting, cells: Iterable[SweepCell]) -> tuple[str, ...] | None:
    """The replies without activations, where an earlier cell has the same prompts."""
    for cell in cells:
        other = cell.setting
        if (other.layers, other.temperature) == (setting.layers, setting.temperature):
            return cell.replies_without
    return None


def _ask(
    oracle: Oracle,
    questions: list[str],
    read: Sequence[Activations],
    setting: Setting,
    without: tuple[str, ...] | None,
    max_new_tokens: int,
    max_batch: int,
    seed: int,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Replies with and without activations."""
    device = oracle.model.device
    on_accelerator = device.type != "cpu"
    forked = torch.random.fork_rng(
        [device] if on_accelerator else [], device_type=device.type if on_accelerator else "cuda"
    )
    sampling = {"temperature": setting.temperature} if setting.temperature else {}
    with forked, warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedLayerWarning)  # layers are what is tried
        torch.manual_seed(seed)
        answers = oracle.ask(
            questions,
            [acts.layer(setting.layers) for acts in read],
            window=setting.window,
            coefficient=setting.coefficient,
            do_sample=bool(sampling),
            controls=("no_activation",) if without is None else False,
            max_new_tokens=max_new_tokens,
            max_batch=max_batch,
            **sampling,
        )
    if without is None:
        without = tuple(answer.controls["no_activation"] for answer in answers)
    return tuple(answer.text for answer in answers), without


# Figures


def _matches(match: Match, reply: str, answer: str) -> bool:
    said, right = normalise(reply), normalise(answer)
    return said == right if match == "exact" else f" {right} " in f" {said} "


def _cell(
    setting: Setting,
    answers: Sequence[str],
    groups: Sequence[int],
    replies: tuple[str, ...],
    replies_without: tuple[str, ...],
) -> SweepCell:
    members = _members(groups)
    figures: dict[str, Estimate] = {}
    for match in get_args(Match):
        own = [float(_matches(match, r, a)) for r, a in zip(replies, answers, strict=True)]
        bare = [float(_matches(match, r, a)) for r, a in zip(replies_without, answers, strict=True)]
        gain = [a - b for a, b in zip(own, bare, strict=True)]
        for end, scores in (("", own), ("_without", bare), ("_gain", gain)):
            units = [[scores[index] for index in unit] for unit in members]
            bounds = (-1.0, 1.0) if end == "_gain" else (0.0, 1.0)
            figures[f"{match}_match{end}"] = bootstrap_mean(
                units, resamples=_RESAMPLES, unit="group", bounds=bounds
            )
    return SweepCell(
        setting=setting,
        num_examples=len(answers),
        replies=replies,
        replies_without=replies_without,
        **figures,
    )


def _figures(cell: SweepCell) -> dict[str, Estimate]:
    return {
        f"{match}_match{end}": getattr(cell, f"{match}_match{end}")
        for match in get_args(Match)
        for end in ("", "_without", "_gain")
    }


def _cell_values(cell: SweepCell, *, replies: bool) -> dict[str, Any]:
    values = dataclasses.asdict(cell)
    if not replies:
        del values["replies"], values["replies_without"]
    return values


def _cell_of(values: dict[str, Any], answers: Sequence[str], groups: Sequence[int]) -> SweepCell:
    """A cell as it was saved; its figures are worked out again from its replies."""
    setting = values["setting"] | {"layers": tuple(values["setting"]["layers"])}
    return _cell(
        Setting(**setting),
        answers,
        groups,
        tuple(values["replies"]),
        tuple(values["replies_without"]),
    )
