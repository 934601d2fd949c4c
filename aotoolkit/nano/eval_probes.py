"""Skylines of the evaluations on the embedded world: what is linearly there in the base.

Each is fitted on what the base holds of labels that somebody gave it, and applied to the items
unchanged, as an oracle is. Where a probe is at chance the base's own way of holding the answer is
not there to be read, and the task says nothing about oracles. Where the answer is a secret word, a
map to embeddings stands beside the probe, which names words that it has no labels of.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence

from aotoolkit.evals.arms import Arm
from aotoolkit.evals.baselines import EmbeddingMap, LinearProbe
from aotoolkit.evals.items import EvalItem, ItemSpec, read_items
from aotoolkit.evals.suites.arms import ProbeOfEach, fit_probe, read_for_fit
from aotoolkit.evals.tasks.base import PromptTask
from aotoolkit.evals.tasks.classification import PredicateClassification
from aotoolkit.nano.corpus import (
    DIRECT_REQUESTS,
    HINT_REQUESTS,
    REFUSALS,
    SECRET_SYSTEMS,
    STATEMENTS,
    Corpus,
    Messages,
    chat,
)
from aotoolkit.nano.eval_tasks import NanoTasks
from aotoolkit.nano.load import Nano
from aotoolkit.nano.tokenizer import Encoder

# Prompts that no task reports on.
FIT_HINT_REQUESTS, FIT_DIRECT_REQUESTS = HINT_REQUESTS[4:], DIRECT_REQUESTS[4:]
EXAMPLES_PER_LABEL = 12
# Of each of the many words that the embedding map is fitted on.
EXAMPLES_PER_WORD = 4
SPARE_TEXTS = 60


def told_words(
    lab: Nano, task: PromptTask, items: Sequence[EvalItem], *, hints: bool, replies: bool
) -> list[Arm]:
    """A probe of the word that a system turn tells the base, read in the turns after it.

    Args:
        lab: the models.
        task: whose layers are read.
        items: whose choices are the words.
        hints: whether the turns ask for a hint, or for the word.
        replies: whether the turns hold a reply of ours; one of the base's own is added where the
            task reads replies.
    """
    words = sorted({choice for item in items for choice in item.choices})
    rng = random.Random(f"probe/{task.name}")
    specs = _told(lab, task, words, EXAMPLES_PER_LABEL, rng, hints=hints, replies=replies)
    return [fit_probe(lab.model, task, specs)]


def told_other_words(lab: Nano, task: PromptTask, *, hints: bool, replies: bool) -> list[Arm]:
    """A map to the embedding of such a word, fitted on the words of the oracle's training alone.

    It has never been told a word that it is asked to name; arguments as of `told_words`.
    """
    words, rng = lab.world.training_secrets, random.Random(f"embedding map/{task.name}")
    specs = _told(lab, task, words, EXAMPLES_PER_WORD, rng, hints=hints, replies=replies)
    read = read_for_fit(lab.model, task, specs)
    return [
        EmbeddingMap.fit(
            lab.model, [item.activations for item in read], [item.answers[0] for item in read]
        )
    ]


def told_facts(lab: Nano, task: PromptTask, attribute: str) -> list[Arm]:
    """A probe of what a word that a system turn tells the base is like, read in a refusal.

    Fitted on the words of the oracle's training, none of which is asked about.
    """
    words, rng = lab.world.training_secrets, random.Random(f"probe/{task.name}")
    specs = [
        dataclasses.replace(spec, answers=(lab.world[spec.unit].value(attribute),))
        for spec in _told(lab, task, words, EXAMPLES_PER_WORD, rng, hints=False, replies=False)
    ]
    return [_fit(read_for_fit(lab.model, task, specs))]


def _told(
    lab: Nano,
    task: PromptTask,
    words: Sequence[str],
    count: int,
    rng: random.Random,
    *,
    hints: bool,
    replies: bool,
) -> list[ItemSpec]:
    """`count` prompts a word, whose system turn tells it; the turns after it are read."""
    encoder, corpus, specs = Encoder(lab.tokenizer), Corpus(lab.world, rng), []
    for word, number in itertools.product(words, range(count)):
        turns = [rng.choice(FIT_HINT_REQUESTS if hints else FIT_DIRECT_REQUESTS)]
        if replies:
            turns.append(corpus.hint(lab.world[word]) if hints else rng.choice(REFUSALS))
        prompt = chat(*turns, system=rng.choice(SECRET_SYSTEMS).format(noun=word))
        _, places = encoder.chat(prompt)
        specs.append(_spec(task, f"{word}/{number}", word, prompt, slice(places[1].start, None)))
    return specs


def told_places(lab: Nano, task: PromptTask, items: Sequence[EvalItem]) -> list[Arm]:
    """A probe of the place of the thing that a text is about, which the text does not say."""
    rng = random.Random(f"probe/{task.name}")
    specs = []
    for place in sorted({choice for item in items for choice in item.choices}):
        for number, thing in enumerate(lab.world.matching(place=place)):
            text = " ".join(
                rng.choice(STATEMENTS[name]).format(noun=thing.noun, value=thing.value(name))
                for name in ("colour", "feel")
            )
            said = chat(text, f"The {thing.noun}.")
            specs.append(_spec(task, f"{place}/{number}", place, said, None))
    return [_fit(read_items(lab.model, specs, layers=task.layers))]


def predicates(lab: Nano, task: PredicateClassification) -> list[Arm]:
    """A probe of each predicate, fitted on texts that are not asked about."""
    return [
        ProbeOfEach(
            {
                predicate.name: fit_probe(
                    lab.model,
                    task,
                    task.placed(lab.model, task.spare_specs(predicate, SPARE_TEXTS)),
                )
                for predicate in task.predicates
            }
        )
    ]


def relation(lab: Nano, tasks: NanoTasks, attribute: str) -> list[Arm]:
    """A probe of a fact at the tokens of things that are not asked about."""
    return [_fit(tasks.relation(attribute, lab.world.training_secrets).items(lab.model))]


def _fit(items: Sequence[EvalItem]) -> LinearProbe:
    return LinearProbe.fit(
        [item.activations for item in items], [item.answers[0] for item in items]
    )


def _spec(
    task: PromptTask, name: str, label: str, prompt: Messages, positions: slice | None
) -> ItemSpec:
    return ItemSpec(
        id=name,
        task=task.name,
        unit=label,
        question="",
        answers=(label,),
        prompt=tuple(prompt),
        positions=positions,
    )
