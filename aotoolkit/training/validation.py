"""Scores of held-out examples, with the vectors and with nothing injected.

The loss of an oracle that ignores its activations falls nicely too: it learns which answers are
likely. So every figure is taken twice, and the difference is what says whether the oracle reads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from aotoolkit.data.example import Example
from aotoolkit.errors import BatchTooLargeError, NonFiniteError
from aotoolkit.training.collator import ActivationCollator, OracleBatch
from aotoolkit.training.loss import answer_logits


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How the examples of one source were answered.

    Attributes:
        n: number of examples.
        loss: mean cross-entropy of their answers' tokens, in nats.
        exact_match: share of examples whose answer is the greedy one, token by token.
        auc: of the log-odds of the two choices, where all examples have two and both occur.
        loss_without: the same with nothing injected, as the next two.
        exact_match_without: see `exact_match`.
        auc_without: see `auc`.
    """

    n: int
    loss: float
    exact_match: float
    auc: float | None
    loss_without: float
    exact_match_without: float
    auc_without: float | None


@dataclass(frozen=True, kw_only=True)
class ValidationFigures:
    """Figures of all held-out examples, and of each source."""

    overall: Figures
    sources: Mapping[str, Figures]

    def to_dict(self) -> dict[str, Any]:
        """The overall figures, and `sources` with those of each, as JSON holds them."""
        sources = {name: dataclasses.asdict(figures) for name, figures in self.sources.items()}
        return {**dataclasses.asdict(self.overall), "sources": sources}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ValidationFigures":
        """The inverse of `to_dict`; other keys, such as the step, are passed over."""
        names = [field.name for field in dataclasses.fields(Figures)]
        return cls(
            overall=Figures(**{name: values[name] for name in names}),
            sources={name: Figures(**row) for name, row in values["sources"].items()},
        )

    def curves(self) -> dict[str, float]:
        """Name -> number, flat, as TensorBoard and the like take them."""
        groups = {"": self.overall, **{f"{name}/": row for name, row in self.sources.items()}}
        return {
            f"eval_{prefix}{name}": value
            for prefix, figures in groups.items()
            for name, value in dataclasses.asdict(figures).items()
            if value is not None and name != "n"
        }


@dataclass(frozen=True)
class Score:
    """One example, scored once.

    Attributes:
        index: which example.
        log_prob: of its answer.
        tokens: of its answer.
        exact: whether the answer is the greedy one.
        log_odds: of the second of its two choices against the first; None without two choices.
    """

    index: int
    log_prob: float
    tokens: int
    exact: bool
    log_odds: float | None


def score_batch(
    model: nn.Module, batch: OracleBatch, *, block: nn.Module, head: nn.Module, inject: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: log-probability of the answer, its number of tokens, whether it is greedy."""
    logits, labels = answer_logits(model, batch, block=block, head=head, inject=inject)
    rows = batch.answer_rows.to(logits.device)
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    wrong = (logits.argmax(-1) != labels).long()
    zeros = torch.zeros(len(batch), device=logits.device)
    log_probs = zeros.index_add(0, rows, -losses)
    tokens = zeros.long().index_add(0, rows, torch.ones_like(wrong))
    errors = zeros.long().index_add(0, rows, wrong)
    return log_probs.cpu(), tokens.cpu(), (errors == 0).cpu()


@torch.no_grad()
def score_examples(
    model: nn.Module,
    collator: ActivationCollator,
    examples: Sequence[Example],
    *,
    block: nn.Module,
    head: nn.Module,
    batch_size: int,
    tokens_per_pass: int,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> dict[bool, list[Score]]:
    """Scores this process's share of the examples: with injection (True) and without (False).

    An example with two choices takes two rows of a batch, one for each. A batch with more tokens
    than `tokens_per_pass`, padding included, is run in pieces, as in training.

    Raises:
        BatchTooLargeError: a piece does not fit into memory.
    """
    prompts = [collator.prompt(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda index: len(prompts[index].token_ids))
    starts = range(0, len(order), batch_size)[rank::world_size]
    scores: dict[bool, list[Score]] = {True: [], False: []}
    was_training = model.training
    model.eval()
    try:
        for start in tqdm(starts, "validation", unit="batch", leave=False, disable=not progress):
            indices = order[start : start + batch_size]
            rows = [(index, answer) for index in indices for answer in _answers(examples[index])]
            read = collator.vectors([examples[index] for index in indices])
            vectors = dict(zip(indices, read, strict=True))
            batch = collator.batch(
                [examples[index] for index, _ in rows],
                [
                    prompts[index]
                    if answer == examples[index].answer
                    else collator.prompt(dataclasses.replace(examples[index], answer=answer))
                    for index, answer in rows
                ],
                [vectors[index] for index, _ in rows],
            )
            for inject in (True, False):
                score = functools.partial(score_batch, model, block=block, head=head, inject=inject)
                values = [v for piece in batch.split(tokens_per_pass) for v in _run(score, piece)]
                of_rows = list(zip(rows, values, strict=True))
                for index in indices:
                    own = {answer: value for (i, answer), value in of_rows if i == index}
                    scores[inject].append(_score(index, examples[index], own))
    finally:
        model.train(was_training)
    return scores


def _run(
    score: Callable[[OracleBatch], tuple[Tensor, Tensor, Tensor]], batch: OracleBatch
) -> Iterator[tuple[float, int, bool]]:
    """What `score_batch` says of each row."""
    try:
        outcome = score(batch)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        rows, length = batch.input_ids.shape
        advice = "Leave out the longest prompts (max_prompt_tokens of the mixture)"
        if rows > 1:
            advice = f"Set tokens_per_pass={rows // 2 * length}"
        raise BatchTooLargeError(
            f"Out of memory while held-out examples were scored: {rows} rows of up to {length} "
            f"tokens at once do not fit. {advice}."
        ) from error
    return zip(*(column.tolist() for column in outcome), strict=True)


def figures_of(
    examples: Sequence[Example], scores: Mapping[bool, Iterable[Score]]
) -> ValidationFigures:
    """Puts the scores of all processes together."""
    found = {inject: sorted(own, key=lambda score: score.index) for inject, own in scores.items()}
    assert [score.index for score in found[True]] == list(range(len(examples))), "one score each"
    for own in found.values():
        if bad := [one for one in own if not math.isfinite(one.log_prob)]:
            raise NonFiniteError(
                f"The log-probability of the answer to held-out example {bad[0].index} "
                f"({examples[bad[0].index].source!r}) is {bad[0].log_prob}. Lower the learning "
                "rate, or run the model in bfloat16 or float32 instead of float16."
            )
    by_source: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_source.setdefault(example.source, []).append(index)
    return ValidationFigures(
        overall=_figures(examples, found, range(len(examples))),
        sources={name: _figures(examples, found, by_source[name]) for name in sorted(by_source)},
    )


def _answers(example: Example) -> tuple[str, ...]:
    return example.choices if len(example.choices) == 2 else (example.answer,)


def _score(index: int, example: Example, own: Mapping[str, tuple[float, int, bool]]) -> Score:
    log_prob, tokens, exact = own[example.answer]
    log_odds = None
    if len(example.choices) == 2:
        first, second = (own[choice][0] for choice in example.choices)
        log_odds = second - first
    return Score(index, log_prob, tokens, exact, log_odds)


def _figures(
    examples: Sequence[Example], found: Mapping[bool, Sequence[Score]], indices: Sequence[int]
) -> Figures:
    values: dict[str, float | None] = {}
    for suffix, inject in (("", True), ("_without", False)):
        scores = [found[inject][index] for index in indices]
        tokens = sum(score.tokens for score in scores)
        values[f"loss{suffix}"] = -sum(score.log_prob for score in scores) / tokens
        values[f"exact_match{suffix}"] = sum(score.exact for score in scores) / len(scores)
        values[f"auc{suffix}"] = _auc([examples[index] for index in indices], scores)
    return Figures(n=len(indices), **values)  # pyright: ignore[reportArgumentType]  # only AUC is None


def _auc(examples: Sequence[Example], scores: Sequence[Score]) -> float | None:
    log_odds = [score.log_odds for score in scores if score.log_odds is not None]
    truths = [e.answer == e.choices[1] for e in examples if len(e.choices) == 2]
    if len(log_odds) < len(examples) or len(set(truths)) < 2:
        return None
    return float(roc_auc_score(truths, log_odds))


def rounds_without_gain(losses: Iterable[float]) -> int:
    """How many held-out losses in a row, at the end, are not below the lowest before them."""
    lowest, stale = float("inf"), 0
    for loss in losses:
        lowest, stale = (loss, 0) if loss < lowest else (lowest, stale + 1)
    return stale
