"""Skylines of the evaluations on the embedded world: what is linearly there in the base.

Each is fitted on what the base holds of labels that somebody gave it, and applied to the items
unchanged, as an oracle is. Where a probe is at chance the base's own way of holding the answer is
not there to be read, and the task says nothing about oracles. Where the answer is a secret word, a
map to embeddings stands beside the probe, which names words that it has no labels of.
"""

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from aotoolkit.evals.arms import Arm, Kind
from aotoolkit.evals.baselines import EmbeddingMap, LinearProbe
from aotoolkit.evals.baselines.probe import check_fitted_for, check_read_from_base
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec, read_items
from aotoolkit.evals.suites.arms import ProbeOfEach, fit_probe, read_for_fit
from aotoolkit.evals.tasks.base import Positions, PromptTask
from aotoolkit.evals.tasks.classification import PredicateClassification
from aotoolkit.nano import questions as wording
from aotoolkit.nano.corpus import (
    DIRECT_REQUESTS,
    FACT_ATTRIBUTES,
    HINT_REQUESTS,
    REFUSALS,
    SECRET_SYSTEMS,
    STATEMENTS,
    Corpus,
    Messages,
    chat,
)
from aotoolkit.nano.eval_tasks import INTRODUCTION, QUICK_SHARE, NanoTasks
from aotoolkit.nano.load import Nano
from aotoolkit.nano.mixture import ATTRIBUTE_ANSWERS, TEXT_ANSWER
from aotoolkit.nano.tokenizer import Encoder
from aotoolkit.tracing import Activations, TracedModel

# Prompts that no task reports on.
FIT_HINT_REQUESTS, FIT_DIRECT_REQUESTS = HINT_REQUESTS[4:], DIRECT_REQUESTS[4:]
EXAMPLES_PER_LABEL = 12
# Of each of the many words that the embedding map is fitted on.
EXAMPLES_PER_WORD = 4
SPARE_TEXTS = 60
STATED_TEXTS = 400
FIT_BATCH = 128
# Of a map that reads tokens off; what it is is not critical.
_TOKEN_PENALTY = 10.0
_USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


def told_words(
    lab: Nano,
    task: PromptTask,
    items: Sequence[EvalItem],
    *,
    hints: bool,
    replies: bool,
    quick: bool = False,
) -> list[Arm]:
    """A probe of the word that a system turn tells the base, read in the turns after it.

    Args:
        lab: the models.
        task: whose layers are read.
        items: whose choices are the words.
        hints: whether the turns ask for a hint, or for the word.
        replies: whether the turns hold a reply of ours; one of the base's own is added where the
            task reads replies.
        quick: a quarter of the prompts.
    """
    count = EXAMPLES_PER_LABEL // (QUICK_SHARE if quick else 1)
    words = sorted({choice for item in items for choice in item.choices})
    rng = random.Random(f"probe/{task.name}")
    specs = _told(lab, task, words, count, rng, hints=hints, replies=replies)
    return [fit_probe(lab.model, _in_large_batches(task), specs)]


def told_other_words(lab: Nano, task: PromptTask, *, hints: bool, replies: bool) -> list[Arm]:
    """A map to the embedding of such a word, fitted on the words of the oracle's training alone.

    It has never been told a word that it is asked to name; arguments as of `told_words`.
    """
    words, rng = lab.world.training_secrets, random.Random(f"embedding map/{task.name}")
    specs = _told(lab, task, words, EXAMPLES_PER_WORD, rng, hints=hints, replies=replies)
    read = read_for_fit(lab.model, _in_large_batches(task), specs)
    return [
        EmbeddingMap.fit(
            lab.model, [item.activations for item in read], [item.answers[0] for item in read]
        )
    ]


def read_told(lab: Nano, task: PromptTask, *, quick: bool = False) -> list[EvalItem]:
    """Words of the oracle's training, none of which is asked about, told and then refused."""
    count = EXAMPLES_PER_WORD // (QUICK_SHARE if quick else 1)
    words, rng = lab.world.training_secrets, random.Random(f"probe/{task.name}")
    specs = _told(lab, task, words, count, rng, hints=False, replies=False)
    return read_for_fit(lab.model, _in_large_batches(task), specs)


def told_facts(lab: Nano, told: Sequence[EvalItem], attribute: str) -> list[Arm]:
    """A probe of what a word that a system turn tells the base is like, read in a refusal."""
    values = [lab.world[item.unit].value(attribute) for item in told]
    return [LinearProbe.fit([item.activations for item in told], values)]


def _in_large_batches(task: PromptTask) -> PromptTask:
    """The task, for hundreds of prompts of the base alone: so small a model is all overhead."""
    return dataclasses.replace(task, batch_size=FIT_BATCH)


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
    """`count` prompts a word, whose system turn tells it; read after it, or where the task does."""
    encoder, corpus, specs = Encoder(lab.tokenizer), Corpus(lab.world, rng), []
    for word, number in itertools.product(words, range(count)):
        turns = [rng.choice(FIT_HINT_REQUESTS if hints else FIT_DIRECT_REQUESTS)]
        if replies:
            turns.append(corpus.hint(lab.world[word]) if hints else rng.choice(REFUSALS))
        prompt = chat(*turns, system=rng.choice(SECRET_SYSTEMS).format(noun=word))
        _, places = encoder.chat(prompt)
        read = _after(places[1].start, task.positions)
        specs.append(_spec(task, f"{word}/{number}", word, prompt, read))
    return specs


def _after(start: int, positions: Positions) -> Positions:
    """What a task reads, counted from `start` on: what tells the word is never read itself."""
    if positions is None:
        return slice(start, None)
    assert isinstance(positions, slice), positions
    assert positions.stop is None, positions
    first = positions.start
    return positions if first < 0 else slice(start + first, None)


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


def people(lab: Nano, task: PromptTask, attribute: str) -> list[Arm]:
    """A probe of a fact about things, read where the task reads people: "My name is tiger."."""
    return [_people_probe(lab, task, attribute)]


def people_yes_no(lab: Nano, task: PromptTask) -> list[Arm]:
    """The same, asked whether the colour is the one in question."""
    return [AskedOfProbe(_people_probe(lab, task, "colour"))]


def _people_probe(lab: Nano, task: PromptTask, attribute: str) -> LinearProbe:
    specs = [
        _spec(
            task,
            noun,
            lab.world[noun].value(attribute),
            chat(INTRODUCTION.replace("{name}", noun)),
            task.positions,
        )
        for noun in lab.world.nouns
    ]
    return _fit(read_for_fit(lab.model, _in_large_batches(task), specs))


class AskedOfProbe:
    """Yes or no, from a probe of the values that are asked about."""

    kind: Kind = "skyline"
    name = "linear probe"

    def __init__(self, probe: LinearProbe) -> None:
        """A probe whose classes are the values."""
        self.probe = probe

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`: the value in `item.details["asked"]` against the mean of all others.

        Half of the items are true, so that a value is to be compared with one other, not with all.
        """
        values = self.probe.classes
        # An item's answer must be one of its choices; a probe does not look at it.
        found = self.probe.answer(
            [dataclasses.replace(item, choices=values, answers=values[:1]) for item in items]
        )
        answers = []
        for item, answer in zip(items, found, strict=True):
            others = [
                score for value, score in answer.scores.items() if value != item.details["asked"]
            ]
            mean = float(np.logaddexp.reduce(others)) - math.log(len(others))
            scores = {"Yes": answer.scores[item.details["asked"]], "No": mean}
            text = max(scores, key=lambda choice: scores[choice])
            answers.append(ArmAnswer(item=item.id, arm=self.name, text=text, scores=scores))
        return answers


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


def stated_facts(lab: Nano, task: PromptTask) -> list[Arm]:
    """What probes find in a text, in the words of the answers: of free answers about texts.

    A probe of each attribute and a map from each token's activation to the token, fitted on texts
    that are not asked about.
    """
    rng = random.Random(f"stated facts/{task.name}")
    corpus = Corpus(lab.world, rng)
    documents = [corpus.statements() for _ in range(STATED_TEXTS)]
    asked = {str(spec.prompt) for spec in task.specs()}
    specs = [
        _spec(task, str(number), document.nouns[0], chat(str(document.content)), task.positions)
        for number, document in enumerate(documents)
    ]
    specs = [spec for spec in specs if str(spec.prompt) not in asked]
    read = [item.activations for item in read_items(lab.model, specs, layers=task.layers)]
    things = [lab.world[spec.unit] for spec in specs]
    probes = {
        name: LinearProbe.fit(
            read, [thing.value(name) for thing in things], pool="mean", regularisation=10.0
        )
        for name in FACT_ATTRIBUTES
    }
    return [RenderedFacts(probes, TokenMap.fit(lab.model, read))]


class TokenMap:
    """Ridge regression (scikit-learn) from what is read at a token to the token's own embedding."""

    def __init__(self, fitted: Pipeline, *, model: TracedModel) -> None:
        """A fitted map; see `fit`."""
        self.fitted = fitted
        self.model = model

    @classmethod
    def fit(cls, model: TracedModel, activations: Sequence[Activations]) -> Self:
        """Fits it on activations of the base.

        Raises:
            EvalError: An adapter was live, or layers differ.
        """
        check_read_from_base(activations)
        ids = [token for acts in activations for token in acts.token_ids]
        features = np.concatenate([_by_token(acts) for acts in activations])
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha=_TOKEN_PENALTY))
        return cls(pipeline.fit(features, _embeddings(model)[ids]), model=model)

    def read(self, acts: Activations) -> str:
        """The tokens whose embeddings are nearest, by cosine, as the text of the user's turn."""
        embeddings = _embeddings(self.model)
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-9)
        ids = (self.fitted.predict(_by_token(acts)) @ embeddings.T).argmax(1)
        text = str(self.model.tokenizer.decode(ids.tolist()))
        turn = _USER_TURN.search(text)
        return text if turn is None else turn[1]


class RenderedFacts:
    """Answers about a text from probes: the attribute that is asked for, or its words."""

    kind: Kind = "skyline"
    name = "probes, rendered"

    def __init__(self, probes: Mapping[str, LinearProbe], tokens: TokenMap) -> None:
        """Attribute -> its probe, and what reads words."""
        self.probes = probes
        self.tokens = tokens

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`.

        Raises:
            IncompatibleActivationsError: An item is of other layers or of another base.
        """
        attributes = {question: name for name, question in wording.TOPIC_ATTRIBUTE.items()}
        answers = []
        for item in items:
            for probe in self.probes.values():
                check_fitted_for(item, layers=probe.layers, base_digest=probe.base_digest)
            if item.question in wording.READ_WORDS:
                text = self.tokens.read(item.activations)
                text = TEXT_ANSWER.format(text=text if text.startswith(" ") else f" {text}")
            else:
                name = attributes[item.question]
                (found,) = self.probes[name].answer([item])
                text = ATTRIBUTE_ANSWERS[name].format(value=found.text)
            answers.append(ArmAnswer(item=item.id, arm=self.name, text=text))
        return answers


def _by_token(acts: Activations) -> NDArray[np.float32]:
    """[p, l * d], what was read at each token, layer by layer."""
    return acts.vectors.float().transpose(0, 1).flatten(1).cpu().numpy()


def _embeddings(model: TracedModel) -> NDArray[np.float32]:
    weight = model.hf_model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor), "a table of embeddings"
    return weight.detach().float().cpu().numpy()


def _fit(items: Sequence[EvalItem]) -> LinearProbe:
    return LinearProbe.fit(
        [item.activations for item in items], [item.answers[0] for item in items]
    )


def _spec(
    task: PromptTask, name: str, label: str, prompt: Messages, positions: Positions
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
