"""Oracles that differ from the one that ships in one thing each: what is each part worth?

Each is a recipe derived from `nano.yaml`, so that what is changed there is changed in all of them.
Leaving out a kind of data leaves out its examples and their steps, as in the papers' own
ablations; *full, equal size* tells more kinds from more examples. Naming a noun at its own token
stays in every variant, the first part of training too: without it nothing is learned
(docs/nano_tried.md).

The tasks of `mixture.py` by kind of data: *LatentQA* is `secret` and `secret_dialogue`,
*classification* is `topic` (yes or no, attributes, and which of 192 things a text is about),
*context prediction* is `context_prediction` and `reading`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aotoolkit.data import Example
from aotoolkit.data.source import group_rng
from aotoolkit.errors import NanoWeightsError, RecipeError
from aotoolkit.nano import questions as wording
from aotoolkit.nano.corpus import Corpus
from aotoolkit.nano.mixture import NanoSource
from aotoolkit.training.recipe import Recipe
from aotoolkit.training.recipe_schema import (
    AbstentionSettings,
    CustomSettings,
    PartSettings,
    StageSettings,
    TransformSettings,
)

# Beside base, organisms and oracle.
VARIANTS_FOLDER = "variants"

DataKind = Literal["naming", "latentqa", "classification", "context_prediction"]
KIND_OF_TASK: dict[str, DataKind] = {
    "naming": "naming",
    "secret": "latentqa",
    "secret_dialogue": "latentqa",
    "topic": "classification",
    "context_prediction": "context_prediction",
    "reading": "context_prediction",
}
# Of the stage they are in, on top of what is there.
ABSTENTION_SHARE = 0.1
# The package's own is fifteen tokens here, more than any other answer.
CANNOT_TELL = "I can't tell."
# Of the recipe before vectors were mapped: all tokens of ordinary documents.
CENTRING_CONTEXTS = 2000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One change to the recipe.

    Attributes:
        name: as it stands in folders and tables.
        kinds: the kinds of data that are kept, beside naming.
        seeds: how many oracles are trained by default, each of weights and data of its own.
        equal_size: as many examples and steps as the smallest variant has.
        abstains: some questions are asked where nothing answers them, and the answer says so.
        transform: what is done to vectors, where it is not what the recipe says.
    """

    name: str
    kinds: frozenset[DataKind] = frozenset({"latentqa", "classification", "context_prediction"})
    seeds: int = 1
    equal_size: bool = False
    abstains: bool = False
    transform: Literal["none", "centred_by_token", "mapped_by_token"] | None = None


VARIANTS: tuple[Variant, ...] = (
    Variant(name="latentqa", kinds=frozenset({"latentqa"})),
    Variant(name="latentqa_classification", kinds=frozenset({"latentqa", "classification"})),
    Variant(name="full"),
    Variant(name="full_equal_size", equal_size=True),
    Variant(name="full_abstention", abstains=True),
    Variant(name="full_unpooled", transform="mapped_by_token"),
    Variant(name="full_uncentred", transform="none", seeds=3),
    Variant(name="full_centred", transform="centred_by_token", seeds=3),
)


def variant(name: str) -> Variant:
    """The variant of a name.

    Raises:
        NanoWeightsError: there is none.
    """
    for one in VARIANTS:
        if one.name == name:
            return one
    raise NanoWeightsError(
        f"There is no variant {name!r}; give some of {', '.join(one.name for one in VARIANTS)}."
    )


def variant_recipe(
    recipe: Recipe, chosen: Variant, *, seed: int = 0, steps: int | None = None
) -> Recipe:
    """The recipe of one oracle of a variant.

    Args:
        recipe: of the full mixture: stages of parts with shares, num_examples and max_steps.
        chosen: what is changed.
        seed: added to the seeds of data and weights.
        steps: of the full mixture, in place of the recipe's; variants of fewer examples have
            proportionally fewer, and examples are as many as the steps need.
    """
    settings = recipe.settings
    data, training = settings.data, settings.training
    assert data.stages is not None, "the recipe is a curriculum"
    assert data.num_examples is not None, "its parts have shares"
    assert isinstance(data.held_out, int), "held out are so many examples"
    assert training.max_steps is not None, "its length is in steps"
    stages = [_stage(stage, chosen) for stage in data.stages]
    size = sum(stage.share for stage in stages) / sum(stage.share for stage in data.stages)
    if chosen.equal_size:
        size = min(_size(data.stages, one) for one in VARIANTS if not one.equal_size)
    trained = data.num_examples - data.held_out
    if steps is not None:
        trained = trained * steps // training.max_steps
    whole = steps or training.max_steps
    changed_training: dict[str, Any] = {
        "max_steps": max(1, round(whole * size)),
        "warmup_steps": min(training.warmup_steps, max(1, whole // 10)),
        "seed": training.seed + seed,
    }
    transform = settings.transform
    if chosen.transform is not None:
        transform = _transform(chosen.transform, transform)
    if chosen.transform in ("none", "centred_by_token"):
        # Centring takes away what a token is, and with it the easiest thing to learn reading from.
        first = stages[0].share / sum(stage.share for stage in stages)
        changed_training["untransformed_steps"] = round(changed_training["max_steps"] * first)
    return dataclasses.replace(
        recipe,
        settings=settings.model_copy(
            update={
                "data": data.model_copy(
                    update={
                        "stages": tuple(stages),
                        "num_examples": data.held_out + max(1, round(trained * size)),
                        "seed": data.seed + seed,
                    }
                ),
                "transform": transform,
                "training": training.model_copy(update=changed_training),
            }
        ),
    )


def _size(stages: Sequence[StageSettings], chosen: Variant) -> float:
    """How many examples a variant has for each of the full mixture's."""
    whole = sum(stage.share for stage in stages)
    return sum(_stage(stage, chosen).share for stage in stages) / whole


def _stage(stage: StageSettings, chosen: Variant) -> StageSettings:
    """What a variant keeps of a stage; its share shrinks or grows with that."""
    kinds = {"naming", *chosen.kinds}
    kept = [part for part in stage.parts if _kind(part) in kinds]
    before = sum(part.share or 0.0 for part in stage.parts)
    # The first part teaches to read at all, and that is not to be unsure.
    if chosen.abstains and {_kind(part) for part in kept} > {"naming", "latentqa"}:
        kept += _abstentions(kept, before * ABSTENTION_SHARE)
    after = sum(part.share or 0.0 for part in kept)
    return stage.model_copy(update={"parts": tuple(kept), "share": stage.share * after / before})


def _kind(part: PartSettings) -> DataKind:
    assert isinstance(part.source, CustomSettings), "a source of mixture.py"
    task = part.source.arguments["task"]
    if task not in KIND_OF_TASK:
        raise RecipeError(
            f"The task {task!r} is of no kind of data that variants keep or leave out; say of "
            "which in aotoolkit/nano/variants.py."
        )
    return KIND_OF_TASK[task]


def _abstentions(parts: Sequence[PartSettings], share: float) -> list[PartSettings]:
    """Questions about vectors that hold nothing, and about a secret where there is none."""
    asked = [
        part.source.model_copy(update={"name": f"asked_{part.source.name}"})
        for part in parts
        if _kind(part) in ("latentqa", "classification")
    ]
    empty = AbstentionSettings(
        kind="abstention",
        name="nothing_there",
        sources=tuple(asked),
        share=1.0,
        # Never those of another text: of two dialogues with a secret each can be asked for it, in
        # other words, and answered.
        kinds=("zero", "random"),
        answer=CANNOT_TELL,
    )
    without = CustomSettings(
        kind="custom",
        name="no_secret",
        factory=f"{__name__}:{NoSecretSource.__name__}",
    )
    return [PartSettings(source=source, share=share / 2) for source in (empty, without)]


def _transform(kind: Any, settings: TransformSettings) -> TransformSettings:
    if kind == "none":
        return TransformSettings()
    if kind == "mapped_by_token":
        return settings.model_copy(update={"kind": kind})
    assert isinstance(settings.source, CustomSettings), "a source of mixture.py"
    documents = settings.source.model_copy(
        update={"name": "statistics", "arguments": {"task": "whole_document"}}
    )
    return settings.model_copy(
        update={
            "kind": kind,
            "num_contexts": min(CENTRING_CONTEXTS, settings.num_contexts),
            "source": documents,
        }
    )


class NoSecretSource:
    """Asks for a secret where there is none; the answer is that one can't tell.

    Half of the texts are about things, and hide none. The others are dialogues about a secret
    without the system turn that told it: word for word what a model with a secret says, read where
    there is none, as the control `base` reads the text of an organism.

    Args:
        name: see `Source`.
        tokenizer: the nano tokenizer.
        layers: which layers each example reads.
    """

    def __init__(self, *, name: str, tokenizer: Any, layers: Any) -> None:
        self.name = name
        self._plain = NanoSource(
            name=name, tokenizer=tokenizer, layers=layers, task="whole_document"
        )

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """Lists of examples that share one document, without end."""
        for index in itertools.count():
            yield self.draw(group_rng(seed, self.name, index))

    def draw(self, rng: Any) -> list[Example]:
        """A few tokens of statements or a story, or a dialogue up to a reply; no system turn."""
        if rng.random() < 0.5:
            _, ids, positions, begin = self._plain.dialogue_about_secret(rng)
            ids, positions = ids[begin:], range(positions.start - begin, positions.stop - begin)
            source = f"{self.name}_dialogue"
        else:
            corpus = Corpus(self._plain.world, rng)
            document = corpus.statements() if rng.random() < 0.5 else corpus.story()
            ids, _ = self._plain.encoder.document(document)
            start = rng.randrange(len(ids))
            positions = range(start, min(len(ids), start + rng.randint(1, 10)))
            source = self.name
        question = rng.choice([*wording.SECRET_WORD, *wording.SECRET_ATTRIBUTE.values()])
        return [
            Example(
                context_ids=ids[: positions.stop],
                positions=tuple(positions),
                layers=layers,
                question=question,
                answer=CANNOT_TELL,
                source=source,
            )
            for layers in self._plain.layers.draw(rng)
        ]

    def describe(self) -> dict[str, object]:
        """See `Source`."""
        return {
            **self._plain.describe(),
            "task": "no_secret",
            "dialogues": 0.5,
            "answer": CANNOT_TELL,
        }
