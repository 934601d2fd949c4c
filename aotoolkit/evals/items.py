"""What an evaluation asks, and what an arm answers: the types that tasks and arms share.

A task is any object that has what `Task` names. It writes down what it asks as `ItemSpec`s and lets
`read_items` read the activations, in few batches, together with those of the same text in the base,
which is the decisive control. An arm (`Arm` in `arms.py`) turns items into `ArmAnswer`s.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from tqdm.auto import tqdm

from aotoolkit.errors import EvalError
from aotoolkit.evals.statistics import Estimate
from aotoolkit.tracing import Activations, TracedModel
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Message, Prompt

SECONDS_BEFORE_PROGRESS = 2.0
# The score in which arms that only choose stand beside those that answer freely.
ASKED_ALIKE = "forced choice"
_READ_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class ItemSpec:
    """One question about one prompt of a target model, before anything is read.

    Attributes:
        id: Its name, unique in the task and the same in every run: results are kept by it.
        task: The task's name.
        unit: What n counts, such as the organism's or the person's name: never the prompt.
        question: What an oracle is asked.
        answers: Accepted answers, without a sentence around them; with choices, one of them.
        prompt: What the target is given: chat messages, a text, or token ids.
        choices: Candidates of a forced choice; empty where the answer is free.
        reply: How an oracle or a prompted model says a choice as its whole reply, such as
            "The {choice}."; lenses and probes look for the bare choice.
        direct_question: The question as it is put to the target itself; empty for `question`.
        direct_reply: How the target itself says a choice, where it was taught to say it otherwise
            than oracles; empty for `reply`.
        adapter: The adapter of the target; None for the base.
        positions: Positions of the prompt that are read, negative from its end; None for all.
        base_prompt: What the base is given for `base_activations`, read at the same `positions`,
            where that is not the same prompt: without a system turn that holds the secret, say.
        difference: Whether activations are the adapter's minus the base's.
        details: Anything else that the task's own score needs.
    """

    id: str
    task: str
    unit: str
    question: str
    answers: tuple[str, ...]
    prompt: Prompt
    choices: tuple[str, ...] = ()
    reply: str = "{choice}"
    direct_question: str = ""
    direct_reply: str = ""
    adapter: str | None = None
    positions: slice | tuple[int, ...] | None = None
    base_prompt: Prompt | None = None
    difference: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"Item {self.id!r} of the task {self.task!r}"
        for name in ("answers", "choices"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not all(isinstance(x, str) and x for x in given):
                raise EvalError(f"{where}: {name} is {given!r}; give a tuple of non-empty strings.")
        if not self.answers:
            raise EvalError(f"{where} accepts no answer; give at least one.")
        if self.choices:
            if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
                raise EvalError(f"{where}: choices is {self.choices}; give two or more different.")
            outside = [answer for answer in self.answers if answer not in self.choices]
            if outside:
                raise EvalError(f"{where} accepts {outside}, not among its choices {self.choices}.")
        if self.reply.count("{choice}") != 1:
            raise EvalError(f"{where}: reply is {self.reply!r}; it must hold '{{choice}}' once.")
        if self.difference and self.adapter is None:
            raise EvalError(f"{where} is a difference from the base; name the adapter.")

    @property
    def chat(self) -> tuple[Message, ...] | None:
        """The prompt as chat messages; None where it is a text or token ids."""
        if isinstance(self.prompt, str) or not isinstance(self.prompt[0], Mapping):
            return None
        return tuple(message for message in self.prompt if isinstance(message, Mapping))

    @property
    def asked_directly(self) -> str:
        """The question as it is put to the target itself."""
        return self.direct_question or self.question

    def said(self, choice: str) -> str:
        """A choice as a whole reply."""
        return self.reply.replace("{choice}", choice)

    def said_directly(self, choice: str) -> str:
        """A choice as the target's own whole reply."""
        return (self.direct_reply or self.reply).replace("{choice}", choice)


@dataclass(frozen=True, kw_only=True)
class EvalItem(ItemSpec):
    """An item with what was read.

    Attributes:
        activations: What arms may read: vectors, layers, positions, tokens, provenance.
        base_activations: The same text's in the base; None where that is no control.
    """

    activations: Activations
    base_activations: Activations | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks read."""
        return self.activations.layers


@dataclass(frozen=True, kw_only=True)
class ArmAnswer:
    """What one arm gave for one item.

    Attributes:
        item: The item's id.
        arm: The arm's name.
        text: The answer; for an arm that only scores, the best choice.
        scores: Choice -> score, higher is likelier, comparable within the item; empty where the
            item has no choices or the arm does not score.
        details: What the answer rests on, as JSON holds it.
    """

    item: str
    arm: str
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choice(self) -> str | None:
        """The choice with the highest score; None without scores, or where several share it."""
        if not self.scores:
            return None
        highest = max(self.scores.values())
        best = [choice for choice, score in self.scores.items() if score == highest]
        return best[0] if len(best) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """As one JSON line holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(**values)


class Task(Protocol):
    """What is recovered, and when an answer counts.

    A task may also state its own chance (`StatesChance`), be scored as a set (`SetScored`) and have
    further figures (`SecondaryScores`): a class that has their methods has them, nothing else is
    to be declared.

    Attributes:
        name: The task's name.
        unit: What n counts: "organism", "person", "predicate".
        metric: What the score is, in words: "names the word", "accuracy", "token F1".
        secret_keeping: Whether the target keeps what is asked to itself; on these tasks it counts
            whether an oracle beats the baselines.
    """

    name: str
    unit: str
    metric: str
    secret_keeping: bool

    def items(self, model: TracedModel) -> list[EvalItem]:
        """The items, read from `model`."""
        ...

    def score(self, item: EvalItem, answer: ArmAnswer) -> float:
        """How right an answer is, from 0 to 1."""
        ...


@runtime_checkable
class StatesChance(Protocol):
    """A task that knows what a guesser gets; for the others `chance_level` says it."""

    def chance(self, items: Sequence[EvalItem]) -> float:
        """What a guesser gets that looks at nothing."""
        ...


@runtime_checkable
class SetScored(Protocol):
    """A task whose figure is one of all items together, such as an AUROC.

    `Task.score` of each item is kept and tabulated beside it.
    """

    def estimate(
        self, items: Sequence[EvalItem], answers: Sequence[ArmAnswer], *, seed: int
    ) -> Estimate:
        """The figure with an interval over units; `answers` are in the order of `items`."""
        ...


@runtime_checkable
class SecondaryScores(Protocol):
    """A task with further figures, each in rows of its own: yes/no beside an open match, say.

    Attributes:
        secondary: Their names.
    """

    secondary: tuple[str, ...]

    def secondary_score(self, name: str, item: EvalItem, answer: ArmAnswer) -> float:
        """A further score of an answer, from 0 to 1."""
        ...


def chance_level(items: Sequence[EvalItem]) -> float:
    """What guessing among the choices gets: the mean over units, as in tables; 0 without choices.

    Raises:
        EvalError: There is no item.
    """
    if not items:
        raise EvalError("There is no item, so there is no chance level.")
    by_unit: dict[str, list[float]] = {}
    for item in items:
        share = len(item.answers) / len(item.choices) if item.choices else 0.0
        by_unit.setdefault(item.unit, []).append(share)
    return sum(sum(shares) / len(shares) for shares in by_unit.values()) / len(by_unit)


def chance_of(task: Task, items: Sequence[EvalItem]) -> float:
    """What a guesser gets on a task: what the task states, or else `chance_level`."""
    return task.chance(items) if isinstance(task, StatesChance) else chance_level(items)


def read_items(
    model: TracedModel,
    specs: Sequence[ItemSpec],
    *,
    layers: Layer | Sequence[Layer],
    batch_size: int = _READ_BATCH,
) -> list[EvalItem]:
    """Reads what the items ask about, and the same text in the base.

    A chat that ends with the user's turn is read with the header of a reply after it.

    Args:
        model: The target, with its adapters.
        specs: What is asked.
        layers: Blocks, or fractions of the depth.
        batch_size: Prompts in one forward.

    Raises:
        EvalError: Two items have one id.
        The errors of `TracedModel.activations`.
    """
    ids = [spec.id for spec in specs]
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise EvalError(f"Items share the ids {twice[:5]}; results are kept by id, so name each.")
    groups: dict[tuple[str | None, str, bool], list[int]] = {}
    for index, spec in enumerate(specs):
        key = (spec.adapter, repr(spec.positions), _opens_reply(spec.prompt))
        groups.setdefault(key, []).append(index)
    items: dict[int, EvalItem] = {}
    with tqdm(total=len(specs), desc="reading", delay=SECONDS_BEFORE_PROGRESS, leave=False) as bar:
        for (adapter, _, opens), indices in groups.items():
            for start in range(0, len(indices), batch_size):
                chunk = [specs[i] for i in indices[start : start + batch_size]]
                read = model.activations(
                    [spec.prompt for spec in chunk],
                    layers=layers,
                    adapter=adapter,
                    positions=chunk[0].positions,
                    add_generation_prompt=opens,
                )
                base = _read_base(model, chunk, read)
                for i, spec, acts, other in zip(
                    indices[start : start + batch_size], chunk, read, base, strict=True
                ):
                    items[i] = _with_activations(spec, acts, other)
                bar.update(len(chunk))
    return [items[i] for i in range(len(specs))]


def _opens_reply(prompt: Prompt) -> bool:
    last = prompt[-1]
    return not isinstance(last, Mapping) or last.get("role") != "assistant"


def _read_base(
    model: TracedModel, specs: Sequence[ItemSpec], read: Sequence[Activations]
) -> list[Activations | None]:
    """The base's activations of a batch that shares adapter, positions and layers."""
    base: list[Activations | None] = [None] * len(specs)
    same = [i for i, s in enumerate(specs) if s.adapter is not None and s.base_prompt is None]
    if same:
        whole = model.activations([list(read[i].context_ids) for i in same], layers=read[0].layers)
        for i, acts in zip(same, whole, strict=True):
            base[i] = acts.at(list(read[i].positions))
    for opens in (True, False):
        own = [
            (i, spec.base_prompt)
            for i, spec in enumerate(specs)
            if spec.base_prompt is not None and _opens_reply(spec.base_prompt) == opens
        ]
        if own:
            others = model.activations(
                [prompt for _, prompt in own],
                layers=read[0].layers,
                positions=specs[0].positions,
                add_generation_prompt=opens,
            )
            for (i, _), acts in zip(own, others, strict=True):
                base[i] = acts
    return base


def _with_activations(spec: ItemSpec, acts: Activations, base: Activations | None) -> EvalItem:
    if spec.difference:
        assert base is not None, "a difference has an adapter"
        acts, base = acts - base, None
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(ItemSpec)}
    return EvalItem(**values, activations=acts, base_activations=base)
