"""What tasks share: how prompts of a target become items, and which answers count."""

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aotoolkit.errors import EvalError, ScoreError
from aotoolkit.evals.baselines.replies import Row, encode_rendered, generate_replies, reply_prompt
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec, read_items
from aotoolkit.evals.metrics import fold, named, names_one
from aotoolkit.evals.statistics import Estimate
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Message, Prompt

Positions = slice | tuple[int, ...] | None
Turns = str | Sequence[Message]

_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(kw_only=True, eq=False)
class PromptTask(ABC):
    """A task whose items are prompts put to a target; a subclass writes `specs` and `score`.

    Attributes:
        layers: Blocks that are read, or fractions of the depth.
        name: The task's name, unique in a suite.
        positions: Positions that are read, negative from the end of the prompt (with its reply,
            where there is one): `(-1,)` for one token, `slice(-10, None)` for the last ten; None
            for all.
        reply: Whether the target first replies to the prompt, with its adapter, greedily; prompt
            and reply are then read together.
        max_reply_tokens: Longest such reply.
        said: How an oracle says a choice as its whole reply, such as "The {choice}.".
        batch_size: Prompts in one forward.
    """

    layers: Layer | Sequence[Layer]
    name: str
    positions: Positions = None
    reply: bool = False
    max_reply_tokens: int = 64
    said: str = "{choice}"
    batch_size: int = 16
    # Without annotations, so that they are no fields: each task has its own.
    unit = ""
    metric = ""
    secret_keeping = False

    @abstractmethod
    def specs(self) -> list[ItemSpec]:
        """What is asked, before anything is read."""

    @abstractmethod
    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """See `Task`."""

    def items(self, model: TracedModel) -> list[EvalItem]:
        """The items, read from `model`.

        Raises:
            EvalError: There is nothing to ask, or a prompt that a target cannot reply to.
            The errors of `TracedModel.activations`.
        """
        specs = self.specs()
        if not specs:
            raise EvalError(f"The task {self.name!r} has no item; give it prompts.")
        if self.reply:
            specs = with_replies(
                model, specs, max_new_tokens=self.max_reply_tokens, batch_size=self.batch_size
            )
        specs = self.placed(model, specs)
        return read_items(model, specs, layers=self.layers, batch_size=self.batch_size)

    def placed(self, model: TracedModel, specs: list[ItemSpec]) -> list[ItemSpec]:  # noqa: ARG002
        """The items with their positions, where these depend on the model's tokens."""
        return specs

    def chance(self, items: Sequence[EvalItem]) -> float:
        """What guessing gets; see `best_guess`."""
        return best_guess(items)


def as_turns(prompt: Turns) -> tuple[Message, ...]:
    """A prompt as a chat; a bare text is the user's turn."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def organism_specs(
    task: PromptTask,
    organisms: Mapping[str, str],
    prompts: Sequence[Turns],
    *,
    question: str,
    direct_question: str,
    choices: tuple[str, ...],
    difference: bool = False,
) -> list[ItemSpec]:
    """An item for each organism and prompt: what the organism holds, among the same choices.

    Args:
        task: Whose items they are.
        organisms: Adapter -> the right choice.
        prompts: What each organism is given.
        question: What an oracle is asked.
        direct_question: What the organism itself is asked; empty for `question`.
        choices: The candidates.
        difference: Whether the adapter's activations minus the base's are read.
    """
    return [
        ItemSpec(
            id=f"{adapter}/{number}",
            task=task.name,
            unit=adapter,
            question=question,
            direct_question=direct_question,
            answers=(right,),
            choices=choices,
            reply=task.said,
            prompt=as_turns(prompt),
            adapter=adapter,
            positions=task.positions,
            difference=difference,
        )
        for adapter, right in organisms.items()
        for number, prompt in enumerate(prompts)
    ]


def with_replies(
    model: TracedModel, specs: Sequence[ItemSpec], *, max_new_tokens: int, batch_size: int = 16
) -> list[ItemSpec]:
    """The items with the target's own greedy reply after their prompt.

    Args:
        model: The target, with its adapters.
        specs: Items whose prompts are chats that end with the user's turn.
        max_new_tokens: Longest reply.
        batch_size: Prompts in one batch.

    Raises:
        EvalError: A prompt is no such chat.
    """
    rows: dict[tuple[tuple[int, ...], str | None], Row] = {}
    keys = []
    for spec in specs:
        if spec.chat is None or spec.chat[-1].get("role") == "assistant":
            raise EvalError(
                f"Item {spec.id!r} of the task {spec.task!r} is to be read with the target's "
                "reply, but its prompt is no chat that ends with the user's turn. Give such a "
                "chat, or reply=False."
            )
        prompt = reply_prompt(model, spec.chat, **model.chat_template_kwargs)
        key = (encode_rendered(model, prompt)[0], spec.adapter)
        rows[key] = Row(token_ids=key[0], adapter=spec.adapter)
        keys.append(key)
    texts = generate_replies(
        model,
        list(rows.values()),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        description="replies of the target",
    )
    replies = dict(zip(rows, texts, strict=True))
    return [
        dataclasses.replace(
            spec,
            prompt=_replied(spec.prompt, replies[key]),
            base_prompt=None
            if spec.base_prompt is None
            else _replied(spec.base_prompt, replies[key]),
        )
        for spec, key in zip(specs, keys, strict=True)
    ]


def _replied(prompt: Prompt, reply: str) -> Prompt:
    return (*prompt, {"role": "assistant", "content": reply})  # pyright: ignore[reportReturnType]


def shifted(positions: Positions, back: int) -> Positions:
    """Positions counted from a place `back` tokens before the end, instead of from the end."""
    if back == 0:
        return positions
    if positions is None:
        return slice(None, -back)
    if isinstance(positions, slice):
        start, stop = (
            end - back if end is not None and end < 0 else end
            for end in (positions.start, positions.stop)
        )
        return slice(start, -back if stop is None else stop, positions.step)
    return tuple(position - back if position < 0 else position for position in positions)


def common_suffix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows end with."""
    count = 0
    for tokens in zip(*(reversed(row) for row in rows), strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def names_only(text: str, accepted: Collection[str], others: Collection[str] = ()) -> bool:
    """Whether a text names one of the accepted words and none of the others."""
    right = {fold(word) for word in accepted}
    found = named(text, [*accepted, *others])
    return bool(found) and found <= right


def chosen(item: EvalItem, answer: ArmAnswer) -> str | None:
    """The choice that an answer makes: by its scores, else the only one that its text names."""
    if answer.scores:
        return answer.choice
    return names_one(answer.text, item.choices)


def preference(item: EvalItem, answer: ArmAnswer, choice: str) -> float:
    """How much an answer prefers a choice to the best of the others.

    By its scores; 1, 0 or -1 where there are none and the text names it, none or several, or
    another.
    """
    if not answer.scores:
        picked = chosen(item, answer)
        return 0.0 if picked is None else 1.0 if picked == choice else -1.0
    best = max(score for other, score in answer.scores.items() if other != choice)
    if answer.scores[choice] == best:
        return 0.0  # not a difference of two infinities
    return answer.scores[choice] - best


def best_guess(items: Sequence[EvalItem]) -> float:
    """What the best guesser gets who knows how often each answer to a question is right.

    It reads nothing and gives one answer to each question: the commonest. It is above one in the
    number of choices where the answers are not balanced. Each unit counts once.
    """
    sizes = Counter(item.unit for item in items)
    by_question: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    uniform = 0.0
    for item in items:
        weight = 1 / sizes[item.unit] / len(sizes)
        uniform += weight / len(item.choices) if item.choices else 0.0
        for accepted in {fold(accepted) for accepted in item.answers}:
            by_question[item.question][accepted] += weight
    return max(uniform, sum(max(counts.values()) for counts in by_question.values()))


def uniform_guess(items: Sequence[EvalItem]) -> float:
    """What drawing one of the choices gets; each unit counts once, 0 without choices."""
    sizes = Counter(item.unit for item in items)
    return sum(
        1 / len(item.choices) / sizes[item.unit] / len(sizes) for item in items if item.choices
    )


def auroc_over_units(
    scores: Sequence[float],
    labels: Sequence[bool],
    units: Sequence[Hashable],
    *,
    unit: str,
    seed: int = 0,
) -> Estimate:
    """AUROC over all items, with a percentile bootstrap that draws units.

    Where all resamples agree they say nothing about other units: at 0 and 1 the exact limit of n
    units stands in their place, and from 0 to 1 anywhere else (one unit of each class).

    Args:
        scores: One for each item; infinite ones stand beyond all finite.
        labels: Whether the item is positive.
        units: The unit that the item is of.
        unit: What a unit is.
        seed: Of the resampling.

    Raises:
        ScoreError: A score is NaN, or all items are of one class.
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if np.isnan(values).any():
        raise ScoreError("Scores hold NaN; leave out items without a score.")
    if positive.all() or not positive.any():
        raise ScoreError(
            f"All {len(positive)} items are of one class; AUROC compares two. Give items of both."
        )
    index = {name: number for number, name in enumerate(dict.fromkeys(units))}
    member = np.eye(len(index))[[index[name] for name in units]]
    high, low = values[positive][:, None], values[~positive][None]
    wins = np.where(high > low, 1.0, np.where(high == low, 0.5, 0.0))
    # [units, units]: pairs that positives of one win against negatives of the other.
    won = member[positive].T @ wins @ member[~positive]
    pairs = np.outer(member[positive].sum(0), member[~positive].sum(0))
    n = len(index)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    drawn = ((times @ pairs) * times).sum(1)
    kept = drawn > 0  # a draw without one of the classes has no AUROC
    draws = ((times @ won) * times).sum(1)[kept] / drawn[kept]
    mean = float(won.sum() / pairs.sum())
    tail = (1 - _CONFIDENCE) / 2
    if len(draws) and draws.min() < draws.max():
        bottom, top = (float(end) for end in np.quantile(draws, [tail, 1 - tail]))
    else:
        bottom = tail ** (1 / n) if mean == 1 else 0.0
        top = 1 - tail ** (1 / n) if mean == 0 else 1.0
    return Estimate(mean, bottom, top, n, unit)


def spellings(given: Mapping[str, str | Sequence[str]], what: str) -> dict[str, tuple[str, ...]]:
    """Adapter -> its secret and other spellings of it.

    Raises:
        EvalError: There is no adapter, or one without a secret.
    """
    found = {
        name: (value,) if isinstance(value, str) else tuple(value) for name, value in given.items()
    }
    if not found or not all(value and all(map(str.strip, value)) for value in found.values()):
        raise EvalError(
            f"organisms is {dict(given)}; give for each adapter {what}, a text that is not empty, "
            "or a list of its spellings."
        )
    return found
