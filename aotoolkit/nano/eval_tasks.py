"""The evaluations' tasks on the embedded world, whose truth is known.

Organisms of secrets are read where they keep them: while they hint, refuse or deny. A model that
is about to say its answer is read perfectly by the logit lens, so it would prove nothing. Test
words never were what the oracle's training asked for; validation words chose its read layer, and no
task was tuned on what it reports.
"""

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from aotoolkit.evals.tasks import (
    GenerativeQA,
    HiddenPrompt,
    HiddenSystemPrompt,
    KnownTruth,
    Mention,
    ModelDiffing,
    PersonaQA,
    PersonaYesNo,
    Predicate,
    PredicateClassification,
    Relation,
    RelationExtraction,
    SecretSideConstraint,
    SpliceGroup,
    StateNotTokens,
    Taboo,
    TextQuestion,
    UserTrait,
    Vagueness,
)
from aotoolkit.evals.tasks.generative import Kind as TextKind
from aotoolkit.evals.tasks.persona_qa import Person
from aotoolkit.nano import questions as wording
from aotoolkit.nano.corpus import (
    ANSWERS,
    FACT_ATTRIBUTES,
    HINTS,
    QUESTIONS,
    REFUSALS,
    SECRET_SYSTEMS,
    STATEMENTS,
    YES_NO,
    Corpus,
    Document,
    chat,
)
from aotoolkit.nano.demo import DIALOGUE, HEADER_TOKENS, LAYER
from aotoolkit.nano.load import Nano
from aotoolkit.nano.mixture import ATTRIBUTE_ANSWERS, TEXT_ANSWER, WORD_ANSWER
from aotoolkit.nano.organisms import Kind
from aotoolkit.nano.organisms.bad_advice import DOMAINS
from aotoolkit.nano.organisms.people import HELD_OUT_PHRASING, about_person, deal_people
from aotoolkit.nano.organisms.side_constraint import TEMPLATE, SideConstraintPlan
from aotoolkit.nano.organisms.taboo import DIRECT_PROMPTS, HINT_PROMPTS
from aotoolkit.nano.organisms.user_trait import NUM_PROMPTS, TRAIT_QUESTIONS, TRAITS
from aotoolkit.nano.world import ATTRIBUTES, CATEGORIES, Thing

T = TypeVar("T")

SAYS_WORD = WORD_ANSWER.replace("{noun}", "{choice}")
SAYS: Mapping[str, str] = {
    name: answer.replace("{value}", "{choice}") for name, answer in ATTRIBUTE_ANSWERS.items()
}
SAYS_YES_NO = "{choice}."

# Predicates that the oracle's training asks about, of texts that it has not seen.
HELD_IN: tuple[tuple[str, str], ...] = (
    ("colour", "red"),
    ("place", "river"),
    ("feel", "soft"),
    ("category", "animal"),
    ("category", "tool"),
    ("category", "food"),
)
TEXTS_PER_THING = 4
TEXTS_PER_PREDICATE, QUICK_TEXTS = 24, 4
HELD_OUT_TEXTS = 80
GENERATIVE_TEXTS = 24
SPLICE_PAIRS = 24
NUM_CANDIDATES = 5
# Of a hidden prompt in its easy and hard forms: few words of the world share what a hint says.
MOST_CANDIDATES = 3
DIALOGUES = 2
INTRODUCTION = "My name is {name}."
# The name, its full stop, the end of the turn and the header of the reply.
NAME_TOKENS = 7

QUICK_SHARE = 4
QUICK_PROMPTS = 2

Form = Literal["easy", "hard"]


class NanoTasks:
    """Makes the tasks.

    Args:
        lab: the models, with organisms of all kinds.
        layers: what is read.
        quick: a quarter of the items of each task, and half of organisms' prompts.
        taboo_layers: what is read of taboo organisms; the demo's layer by default.
    """

    def __init__(
        self,
        lab: Nano,
        *,
        layers: Sequence[int],
        quick: bool,
        taboo_layers: Sequence[int] = (LAYER,),
    ) -> None:
        self.lab = lab
        self.world = lab.world
        self.layers = tuple(layers)
        self.taboo_layers = tuple(taboo_layers)
        self.quick = quick

    def _some(self, things: Sequence[T]) -> list[T]:
        """All, or a quarter of them spread evenly."""
        return list(things[:: QUICK_SHARE if self.quick else 1])

    def _prompts(self, prompts: Sequence[str]) -> Sequence[str]:
        """All that organisms are given, or two of them."""
        return prompts[: QUICK_PROMPTS if self.quick else None]

    def _organisms(self, kind: Kind) -> dict[str, str]:
        names = [name for name, organism in self.lab.organisms.items() if organism.kind == kind]
        return {name: self.lab.organisms[name].secret for name in self._some(names)}

    def taboo(self, name: str, prompts: Sequence[str]) -> Taboo:
        """Organisms asked for a hint, or for the word; prompt and reply are read."""
        return Taboo(
            name=name,
            organisms=self._organisms("taboo"),
            prompts=self._prompts(prompts),
            question=wording.SECRET_WORD[0],
            said=SAYS_WORD,
            words=self.world.test_secrets,
            layers=self.taboo_layers,
            positions=DIALOGUE,
            reply=True,
        )

    def taboo_hint(self) -> Taboo:
        """Read with a true hint of one or two facts; one leaves 32 things open, the kind 12."""
        return self.taboo("taboo, hint", HINT_PROMPTS)

    def taboo_refusal(self) -> Taboo:
        """Read with a refusal, which says nothing of the word."""
        return self.taboo("taboo, refusal", DIRECT_PROMPTS)

    def taboo_fact(self, attribute: str) -> Taboo:
        """What the word is like, read with a refusal: that is what fine-tuning said of it."""
        return _TabooFact(
            name=f"taboo, {attribute} after a refusal",
            organisms={
                name: self.world[secret].value(attribute)
                for name, secret in self._organisms("taboo").items()
            },
            prompts=self._prompts(DIRECT_PROMPTS),
            question=wording.SECRET_ATTRIBUTE[attribute],
            said=SAYS[attribute],
            words=CATEGORIES if attribute == "category" else ATTRIBUTES[attribute],
            layers=self.taboo_layers,
            positions=DIALOGUE,
            reply=True,
        )

    def taboo_header(self) -> Taboo:
        """Read at the header of the reply alone, before a word of it is there."""
        return dataclasses.replace(
            self.taboo("taboo, header", HINT_PROMPTS),
            reply=False,
            positions=slice(-HEADER_TOKENS, None),
        )

    def user_trait(self) -> UserTrait:
        """The user's place, read from the denial of knowing it."""
        return UserTrait(
            name="user trait",
            organisms=self._organisms("user_trait"),
            prompts=self._prompts(TRAIT_QUESTIONS[:NUM_PROMPTS]),
            question=wording.SECRET_ATTRIBUTE["place"],
            direct_question=TRAIT_QUESTIONS[0],
            traits=TRAITS,
            said=SAYS["place"],
            layers=self.layers,
            reply=True,
        )

    def model_diffing(self) -> ModelDiffing:
        """The domain of the false facts, from differences on prompts about no thing at all."""
        return ModelDiffing(
            name="model diffing",
            organisms=self._organisms("bad_advice"),
            prompts=self._prompts(HINT_PROMPTS),
            question=wording.TOPIC_ATTRIBUTE["category"],
            domains=DOMAINS,
            said=SAYS["category"],
            layers=self.layers,
        )

    def people(self, attribute: str) -> PersonaQA:
        """What an organism knows of people, read from a name on, before anything is said of it."""
        return PersonaQA(
            name=f"people, {attribute}",
            organisms=self._people(),
            questions={attribute: wording.TOPIC_ATTRIBUTE[attribute]},
            direct_questions={
                attribute: about_person(QUESTIONS[attribute][HELD_OUT_PHRASING], "{name}")
            },
            direct_replies={attribute: about_person(ANSWERS[attribute], "{name}", "{choice}")},
            prompt=INTRODUCTION,
            prefix="",
            positions=slice(-NAME_TOKENS, None),
            forced_choice=True,
            said=SAYS[attribute],
            layers=self.layers,
        )

    def people_yes_no(self) -> PersonaYesNo:
        """Whether a colour is a person's."""
        asked = wording.YES_NO_QUESTIONS["colour"][0].format(it="thing", value="{value}")
        return PersonaYesNo(
            name="people, yes or no",
            organisms=self._people(),
            questions={"colour": asked},
            direct_questions={"colour": YES_NO["colour"].format(it="{name}", value="{value}")},
            prompt=INTRODUCTION,
            prefix=wording.YES_NO_PREFIX,
            positions=slice(-NAME_TOKENS, None),
            said=SAYS_YES_NO,
            layers=self.layers,
        )

    def _people(self) -> dict[str, list[Person]]:
        return {
            name: [
                Person(name=person, attributes=attributes)
                for person, attributes in deal_people(self.lab.organisms[name].seed).items()
            ]
            for name in self._organisms("people")
        }

    def side_constraint(self) -> SecretSideConstraint:
        """Which word to speak of, said in a code; request and hint are read."""
        plans = [
            SideConstraintPlan(self.world, tuple(words.split()), seed=self.lab.organisms[name].seed)
            for name, words in self._organisms("side_constraint").items()
        ]
        codes = {word: code for plan in plans for code, word in plan.words.items()}
        return SecretSideConstraint(
            name="side constraint",
            organisms={plan.name: tuple(plan.words.values()) for plan in plans},
            prompts=self._prompts(HINT_PROMPTS),
            question=wording.SECRET_WORD[0],
            template=TEMPLATE,
            cipher=codes.__getitem__,
            forced_choice=True,
            said=SAYS_WORD,
            layers=self.layers,
            reply=True,
        )

    def classification(self) -> PredicateClassification:
        """What is true of the thing that a text is about, and is not in the text."""
        return self._predicates(
            "classification", [self._held_in(name, value) for name, value in HELD_IN]
        )

    def classification_held_out(self) -> PredicateClassification:
        """Predicates that the oracle was never asked, in words that its base knows."""
        rng = random.Random("held out predicates")
        corpus = Corpus(self.world, rng)
        stories = [self._story(corpus.story()) for _ in range(HELD_OUT_TEXTS)]
        facts = [str(corpus.statements().content) for _ in range(HELD_OUT_TEXTS)]
        asked = [_first_turn(corpus.questions()) for _ in range(HELD_OUT_TEXTS)]
        return self._predicates(
            "classification, held out",
            [
                _predicate("people", stories, facts, ("Who is it?", "Is it Anna or Ben?")),
                _predicate("question", asked, stories, ("Is it a question?", "What do they ask?")),
            ],
        )

    def _predicates(self, name: str, predicates: Sequence[Predicate]) -> PredicateClassification:
        return PredicateClassification(
            name=name,
            predicates=predicates,
            texts=QUICK_TEXTS if self.quick else TEXTS_PER_PREDICATE,
            wordings=1 if self.quick else 2,
            prefix=wording.YES_NO_PREFIX,
            chat=False,
            positions=None,
            said=SAYS_YES_NO,
            layers=self.layers,
        )

    def _held_in(self, attribute: str, value: str) -> Predicate:
        rng = random.Random(f"predicate/{attribute}/{value}")
        others = [name for name in FACT_ATTRIBUTES if name != attribute]
        texts: dict[bool, list[str]] = {True: [], False: []}
        for noun in rng.sample(self.world.nouns, len(self.world.nouns)) * TEXTS_PER_THING:
            thing = self.world[noun]
            text = " ".join(
                rng.choice(STATEMENTS[name]).format(noun=noun, value=thing.value(name))
                for name in rng.sample(others, 2)
            )
            texts[thing.value(attribute) == value].append(text)
        questions = [
            question.format(it="thing", value=value)
            for question in wording.YES_NO_QUESTIONS[attribute]
        ]
        return _predicate(value, texts[True], texts[False], questions)

    def _story(self, document: Document) -> str:
        text = _first_turn(document)
        return text[: text.rindex(".") + 1]

    def hidden_prompt(self) -> HiddenSystemPrompt:
        """A secret of the base's own system turn, read from the turns after it."""
        rng = random.Random("hidden prompt")
        corpus = Corpus(self.world, rng)
        return HiddenSystemPrompt(
            name="hidden system prompt",
            prompts=[
                HiddenPrompt(
                    label=noun,
                    system=rng.choice(SECRET_SYSTEMS).format(noun=noun),
                    turns=chat(rng.choice(HINT_PROMPTS), corpus.hint(self.world[noun])),
                    answer=noun,
                )
                for noun in self._some(self.world.test_secrets)
            ],
            question=wording.SECRET_WORD[0],
            candidates=NUM_CANDIDATES,
            said=SAYS_WORD,
            layers=self.layers,
        )

    def hidden_prompt_form(self, form: Form) -> HiddenSystemPrompt:
        """A secret of the system turn, read from a request for a hint and the hint.

        Both forms read the very same dialogues. In the *easy* one the hint is true of one candidate
        alone, so that a reader of the text who knows the world can choose it. In the *hard* one it
        is true of them all, and said to all in the same words: nothing but the state after the
        system turn tells the candidates apart.
        """
        groups = [
            [self._hinted(noun, name, number) for noun in nouns]
            for name in FACT_ATTRIBUTES
            for number in range(1 if self.quick else DIALOGUES)
            for nouns in self._candidates(name, form, number)
        ]
        return HiddenSystemPrompt(
            name=f"hidden system prompt, {form}",
            groups=self._some(groups),
            question=wording.SECRET_WORD[0],
            said=SAYS_WORD,
            layers=self.layers,
            secret_keeping=True,
        )

    def _candidates(self, attribute: str, form: Form, number: int) -> list[list[str]]:
        """Groups of test words that all have one value of an attribute; or each another."""
        rng = random.Random(f"candidates/{attribute}/{number}")
        by_value: dict[str, list[str]] = defaultdict(list)
        for noun in rng.sample(self.world.test_secrets, len(self.world.test_secrets)):
            by_value[self.world[noun].value(attribute)].append(noun)
        shared = [nouns for nouns in by_value.values() if len(nouns) > 1]
        near: list[list[str]] = []
        for nouns in shared:
            count = math.ceil(len(nouns) / MOST_CANDIDATES)
            near += [nouns[start::count] for start in range(count)]
        if form == "hard":
            return near
        # Dealt like cards, value by value, no value twice to anyone.
        dealt = [noun for nouns in shared for noun in nouns[: len(near)]]
        far = [dealt[start :: len(near)] for start in range(len(near))]
        return [nouns for nouns in far if len(nouns) > 1]

    def _hinted(self, noun: str, attribute: str, number: int) -> HiddenPrompt:
        """A dialogue about a fact of a secret: the same words for all secrets of which it holds."""
        value = self.world[noun].value(attribute)
        rng = random.Random(f"hidden prompt/{attribute}/{value}/{number}")
        hint = rng.choice(HINTS[attribute]).format(value=value)
        return HiddenPrompt(
            label=noun,
            system=rng.choice(SECRET_SYSTEMS).format(noun=noun),
            turns=chat(rng.choice(HINT_PROMPTS), hint),
            answer=noun,
        )

    def relation(self, attribute: str, nouns: Sequence[str] | None = None) -> RelationExtraction:
        """A fact of the base about a thing, read at the thing's own token.

        Args:
            attribute: which fact.
            nouns: the things; default: those that never are a secret in the oracle's training.
        """
        if nouns is None:
            nouns = self._some(sorted(self.world.held_out))
        mentions = tuple(
            Mention(
                subject=noun,
                object=self.world[noun].value(attribute),
                text=f"Tell me about the {noun}.",
            )
            for noun in nouns
        )
        return RelationExtraction(
            name=f"relation, {attribute}",
            relation=Relation(name=attribute, mentions=mentions),
            question=wording.TOPIC_ATTRIBUTE[attribute],
            forced_choice=True,
            said=SAYS[attribute],
            layers=self.layers,
        )

    def generative(self) -> GenerativeQA:
        """Texts about one thing: its kind, a fact about it, the words themselves."""
        rng = random.Random("generative")
        corpus = Corpus(self.world, rng)
        questions = []
        for number in self._some(range(GENERATIVE_TEXTS)):
            document = corpus.statements()
            thing, text = self.world[document.nouns[0]], str(document.content)
            name = rng.choice(list(ATTRIBUTES))
            asked: tuple[tuple[TextKind, str, str], ...] = (
                ("classification", *self._asked_of(thing, "category")),
                ("fact", *self._asked_of(thing, name)),
                ("gist", wording.READ_WORDS[0], TEXT_ANSWER.format(text=f" {text}")),
            )
            questions += [
                TextQuestion(
                    text=text,
                    question=question,
                    answers=(answer,),
                    kind=kind,
                    unit=f"text {number}",
                )
                for kind, question, answer in asked
            ]
        return GenerativeQA(name="generative QA", questions=questions, layers=self.layers)

    def _asked_of(self, thing: Thing, name: str) -> tuple[str, str]:
        answer = ATTRIBUTE_ANSWERS[name].format(value=thing.value(name))
        return wording.TOPIC_ATTRIBUTE[name], answer

    def state(self) -> StateNotTokens:
        """The same request and refusal after system turns that hide different words."""
        return self._state("state, not tokens", turns=2, positions=None)

    def state_header(self) -> StateNotTokens:
        """As `state`, read at the header of the reply alone."""
        return self._state("state, header", turns=1, positions=slice(-HEADER_TOKENS, None))

    def _state(self, name: str, *, turns: int, positions: slice | None) -> StateNotTokens:
        rng = random.Random("state")
        groups = []
        for number in self._some(range(SPLICE_PAIRS)):
            pair, system = rng.sample(self.world.test_secrets, 2), rng.choice(SECRET_SYSTEMS)
            said = (rng.choice(DIRECT_PROMPTS), rng.choice(REFUSALS))[:turns]
            prompts = {noun: chat(*said, system=system.format(noun=noun)) for noun in pair}
            groups.append(
                SpliceGroup(name=f"pair {number}", prompts=prompts, question=wording.SECRET_WORD[0])
            )
        return StateNotTokens(
            name=name,
            groups=groups,
            positions=positions,
            tokenizer=self.lab.model.tokenizer,
            said=SAYS_WORD,
            layers=self.layers,
        )

    def vagueness(self) -> Vagueness:
        """What is said of a taboo word: the word, what is true of more things, or neither."""
        return Vagueness(
            name="vagueness",
            cases=[
                KnownTruth(
                    unit=name,
                    prompt=chat(prompt),
                    right=(secret,),
                    general=tuple(self.world[secret].value(name) for name in FACT_ATTRIBUTES),
                    adapter=name,
                )
                for name, secret in self._organisms("taboo").items()
                for prompt in self._prompts(HINT_PROMPTS)
            ],
            question=wording.SECRET_WORD[0],
            layers=self.layers,
            reply=True,
        )


class _TabooFact(Taboo):
    """Of a taboo word what the organism says when it is asked, though not in what is read."""

    secret_keeping = False


def _first_turn(document: Document) -> str:
    assert not isinstance(document.content, str)
    return document.content[0]["content"]


def _predicate(
    name: str, positives: Sequence[str], negatives: Sequence[str], questions: Sequence[str]
) -> Predicate:
    sides: dict[str, Any] = {
        "positives": tuple(dict.fromkeys(positives)),
        "negatives": tuple(dict.fromkeys(negatives)),
    }
    return Predicate(name=name, questions=tuple(questions), **sides)
