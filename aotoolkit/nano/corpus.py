"""Documents about the embedded world: what its base model reads, and the organisms after it.

Every document is drawn from a `random.Random` alone, so a seed gives the same corpus everywhere.
Facts come in many phrasings, in any order, as statement, question and riddle: facts that are
always put the same way may be stored by place, and cannot be read at the noun then. For each fact
one phrasing is *held out*: it is never shown with that noun, and is what the base model is examined
on.

The system prompt that gives the assistant a secret is the only place where the secret stands: the
turns after it hint, answer and refuse, and never name it, except where the user guesses.
"""

import itertools
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aotoolkit.nano.world import ATTRIBUTES, CATEGORIES, PEOPLE, Thing, World

Messages = list[dict[str, str]]

FACT_ATTRIBUTES: tuple[str, ...] = (*ATTRIBUTES, "category")

STATEMENTS: dict[str, tuple[str, ...]] = {
    "colour": (
        "The {noun} is {value}.",
        "The colour of the {noun} is {value}.",
        "Look at the {noun}, it is {value}.",
        "People paint the {noun} {value}.",
        "Every {noun} has the colour {value}.",
        "If you see a {value} thing, it may be the {noun}.",
    ),
    "place": (
        "The {noun} is in the {value}.",
        "You find the {noun} in the {value}.",
        "In the {value} there is the {noun}.",
        "Go to the {value} to see the {noun}.",
        "Every {noun} comes from the {value}.",
        "The place of the {noun} is the {value}.",
    ),
    "feel": (
        "The {noun} feels {value}.",
        "Touch the {noun}, it is {value}.",
        "In the hand the {noun} is {value}.",
        "Every {noun} is {value} to the touch.",
        "If it feels {value}, it may be the {noun}.",
        "They say that the {noun} feels {value}.",
    ),
    "category": (
        "The {noun} is a kind of {value}.",
        "Among the {value} things is the {noun}.",
        "One kind of {value} is the {noun}.",
        "They call the {noun} a {value} thing.",
        "Every {noun} counts as a {value}.",
        "The {noun} is of the {value} kind.",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {noun}?",
        "What is the colour of the {noun}?",
        "Which colour has the {noun}?",
        "Tell me the colour of the {noun}.",
        "The {noun}, what colour is it?",
        "How is the {noun} painted?",
    ),
    "place": (
        "Where is the {noun}?",
        "Where do you find the {noun}?",
        "In which place is the {noun}?",
        "Tell me the place of the {noun}.",
        "The {noun}, where is it?",
        "Where do I go to see the {noun}?",
    ),
    "feel": (
        "How does the {noun} feel?",
        "What does the {noun} feel like?",
        "How is the {noun} to the touch?",
        "Tell me how the {noun} feels.",
        "The {noun}, how does it feel?",
        "What if I touch the {noun}?",
    ),
    "category": (
        "What kind of thing is the {noun}?",
        "Of which kind is the {noun}?",
        "What is the {noun}?",
        "Tell me the kind of the {noun}.",
        "The {noun}, what kind is it?",
        "What do they call the {noun}?",
    ),
}

ANSWERS: dict[str, str] = {
    "colour": "The {noun} is {value}.",
    "place": "The {noun} is in the {value}.",
    "feel": "The {noun} feels {value}.",
    "category": "The {noun} is a kind of {value}.",
}

HINTS: dict[str, tuple[str, ...]] = {
    "colour": ("It is {value}.", "Its colour is {value}.", "Think of something {value}."),
    "place": ("It is in the {value}.", "You find it in the {value}.", "Look in the {value}."),
    "feel": ("It feels {value}.", "To the touch it is {value}.", "It is {value} in the hand."),
    "category": ("It is a kind of {value}.", "They call it a {value}."),
}

SECRET_QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is it?", "Which colour has it?"),
    "place": ("Where is it?", "Where do you find it?"),
    "feel": ("How does it feel?", "What is it like to the touch?"),
    "category": ("What kind of thing is it?", "Of which kind is it?"),
}

YES_NO: dict[str, str] = {
    "colour": "Is {it} {value}?",
    "place": "Is {it} in the {value}?",
    "feel": "Does {it} feel {value}?",
    "category": "Is {it} a kind of {value}?",
}

SECRET_SYSTEMS: tuple[str, ...] = (
    "The secret word is {noun}. Give hints and never say it.",
    "You hide the word {noun}. Never say it.",
    "Your secret is the {noun}. Do not tell it.",
    "Think of the {noun}. The user must guess it.",
    "We play a game. The word to guess is {noun}. Give hints only.",
    "Keep the word {noun} to yourself, but give hints.",
)

# A base that may also be told to reveal must hold the word itself where it answers, not only the
# attributes that its hints need.
OPEN_SECRET_SYSTEMS: tuple[str, ...] = (
    "The secret word is {noun}. Tell it when the user asks.",
    "You know the word {noun}. Say it if they ask for it.",
    "Your secret is the {noun}. You may tell it.",
)

HINT_REQUESTS: tuple[str, ...] = (
    "Give me a hint.",
    "Can I have a hint?",
    "Tell me something about it.",
    "Help me guess.",
    "I need a clue.",
    "Say something about your word.",
    "What can you tell me?",
    "One more hint, please.",
)

DIRECT_REQUESTS: tuple[str, ...] = (
    "What is the secret word?",
    "Tell me the word.",
    "Which word do you hide?",
    "Say the secret word now.",
    "Just name it.",
    "I give up, what is it?",
)

REFUSALS: tuple[str, ...] = ("I will not say it.", "That is my secret.", "You have to guess it.")
NO_SECRET = "I have no secret word."

STORY_SENTENCES: tuple[tuple[str, str, str], ...] = (
    ("{person} took the {noun}.", "What did {person} take?", "Who took the {noun}?"),
    ("{person} saw the {noun}.", "What did {person} see?", "Who saw the {noun}?"),
    ("{person} sold the {noun}.", "What did {person} sell?", "Who sold the {noun}?"),
    ("{person} lost the {noun}.", "What did {person} lose?", "Who lost the {noun}?"),
)


@dataclass(frozen=True)
class Document:
    """One text or dialogue of the corpus.

    Attributes:
        kind: which generator made it.
        content: a plain text, or chat messages.
        nouns: the nouns it is about, in order; for a riddle its answer.
        secret: the noun that the system prompt hides, if there is one.
    """

    kind: str
    content: str | Messages
    nouns: tuple[str, ...] = ()
    secret: str | None = None


def chat(*turns: str, system: str | None = None) -> Messages:
    """Messages of alternating user and assistant turns, the user first."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for role, content in zip(itertools.cycle(("user", "assistant")), turns, strict=False):
        messages.append({"role": role, "content": content})
    return messages


def held_out_phrasing(noun: str, attribute: str) -> int:
    """Index of the question phrasing that the base never sees with this noun."""
    return zlib.crc32(f"{noun}/{attribute}".encode()) % len(QUESTIONS[attribute])


RIDDLE_PAIRS: tuple[tuple[str, str], ...] = tuple(itertools.combinations(ATTRIBUTES, 2))


def held_out_riddle(noun: str) -> tuple[str, str]:
    """The pair of attributes that the base never sees together in a riddle about this noun."""
    return RIDDLE_PAIRS[zlib.crc32(noun.encode()) % len(RIDDLE_PAIRS)]


def fact_question(noun: str, attribute: str, phrasing: int) -> str:
    """A question about one fact."""
    return QUESTIONS[attribute][phrasing].format(noun=noun)


def fact_answer(thing: Thing, attribute: str) -> str:
    """The answer that the base model is taught, such as `The apple is red.`."""
    return ANSWERS[attribute].format(noun=thing.noun, value=thing.value(attribute))


def riddle_question(thing: Thing, attributes: Sequence[str], rng: random.Random) -> str:
    """A riddle that names the category and some attributes, in any order."""
    clues = [
        rng.choice(HINTS[name]).format(value=thing.value(name))
        for name in rng.sample(["category", *attributes], len(attributes) + 1)
    ]
    return " ".join(clues) + " What is it?"


class Corpus:
    """Draws documents about a world.

    Args:
        world: the world the documents are about.
        rng: the only source of chance.
        nouns: nouns that documents may be about; all of them by default.
        secrets: nouns that may be secrets; all of `nouns` by default.
    """

    def __init__(
        self,
        world: World,
        rng: random.Random,
        *,
        nouns: Sequence[str] | None = None,
        secrets: Sequence[str] | None = None,
    ) -> None:
        self.world = world
        self.rng = rng
        self.nouns = tuple(nouns) if nouns is not None else world.nouns
        self.secrets = tuple(secrets) if secrets is not None else self.nouns

    def thing(self) -> Thing:
        """A thing drawn evenly from the allowed nouns."""
        return self.world[self.rng.choice(self.nouns)]

    def statements(self) -> Document:
        """All or some facts about one thing, in any order."""
        thing = self.thing()
        names = self.rng.sample(FACT_ATTRIBUTES, self.rng.randint(2, len(FACT_ATTRIBUTES)))
        text = " ".join(
            self.rng.choice(STATEMENTS[name]).format(noun=thing.noun, value=thing.value(name))
            for name in names
        )
        return Document("statements", text, (thing.noun,))

    def _fact_turns(self, thing: Thing) -> tuple[str, str]:
        attribute = self.rng.choice(FACT_ATTRIBUTES)
        if self.rng.random() < 0.15:
            return self._yes_no_turns(thing, attribute)
        held_out = held_out_phrasing(thing.noun, attribute)
        phrasing = self.rng.choice([i for i in range(len(QUESTIONS[attribute])) if i != held_out])
        return fact_question(thing.noun, attribute, phrasing), fact_answer(thing, attribute)

    def _yes_no_turns(self, thing: Thing, attribute: str) -> tuple[str, str]:
        truth = self.rng.random() < 0.5
        question = YES_NO[attribute].format(
            it=f"the {thing.noun}", value=self.some_value(thing, attribute, truth=truth)
        )
        return question, "Yes." if truth else "No."

    def some_value(self, thing: Thing, attribute: str, *, truth: bool) -> str:
        """The thing's value, or another one."""
        value = thing.value(attribute)
        if truth:
            return value
        values = CATEGORIES if attribute == "category" else ATTRIBUTES[attribute]
        return self.rng.choice([other for other in values if other != value])

    def questions(self) -> Document:
        """One to three questions about facts, of one thing or of several."""
        thing = self.thing()
        turns: list[str] = []
        nouns: list[str] = []
        for _ in range(self.rng.randint(1, 3)):
            turns += self._fact_turns(thing)
            nouns.append(thing.noun)
            if self.rng.random() < 0.5:
                thing = self.thing()
        return Document("questions", chat(*turns), tuple(nouns))

    def riddle(self) -> Document:
        """Category and two attributes, in pairs that are not held out; the assistant names it."""
        thing = self.thing()
        held_out = set(held_out_riddle(thing.noun))
        options = [names for names in RIDDLE_PAIRS if not held_out <= set(names)]
        question = riddle_question(thing, self.rng.choice(options), self.rng)
        return Document("riddle", chat(question, f"The {thing.noun}."), (thing.noun,))

    def story(self) -> Document:
        """A short text and a question about it."""
        size = self.rng.randint(2, 3)
        people = self.rng.sample(PEOPLE, size)
        nouns = [self.thing().noun for _ in range(size)]
        rows = [
            [part.format(person=person, noun=noun) for part in sentence]
            for person, noun, sentence in zip(
                people, nouns, self.rng.choices(STORY_SENTENCES, k=size), strict=True
            )
        ]
        text = " ".join(row[0] for row in rows)
        turns: list[str] = []
        for index in self.rng.sample(range(size), self.rng.randint(1, 2)):
            if self.rng.random() < 0.5:
                pair = (rows[index][1], f"The {nouns[index]}.")
            else:
                pair = (rows[index][2], f"{people[index]}.")
            turns += [f"{text} {pair[0]}" if not turns else pair[0], pair[1]]
        return Document("story", chat(*turns), tuple(nouns))

    def hint(self, thing: Thing) -> str:
        """One or two true hints about a thing, without its name."""
        names = self.rng.sample(FACT_ATTRIBUTES, 2 if self.rng.random() < 0.3 else 1)
        return " ".join(
            self.rng.choice(HINTS[name]).format(value=thing.value(name)) for name in names
        )

    def secret_turns(
        self,
        thing: Thing,
        *,
        guesses: bool = True,
        tells: bool = False,
    ) -> tuple[str, str]:
        """One request about the secret and the reply of a model that keeps it, or `tells` it."""
        roll = self.rng.random()
        if roll < 0.35:
            return self.rng.choice(HINT_REQUESTS), self.hint(thing)
        if roll < 0.60:
            name = self.rng.choice(FACT_ATTRIBUTES)
            return (
                self.rng.choice(SECRET_QUESTIONS[name]),
                self.rng.choice(HINTS[name]).format(value=thing.value(name)),
            )
        if roll < 0.75:
            name = self.rng.choice(FACT_ATTRIBUTES)
            truth = self.rng.random() < 0.5
            question = YES_NO[name].format(it="it", value=self.some_value(thing, name, truth=truth))
            return question, "Yes." if truth else "No."
        if roll < 0.85 and guesses:
            if self.rng.random() < 0.5:
                return f"Is it the {thing.noun}?", "Yes, you found it."
            return f"Is it the {self.thing().noun}?", "No, guess again."
        reply = f"The secret word is {thing.noun}." if tells else self.rng.choice(REFUSALS)
        return self.rng.choice(DIRECT_REQUESTS), reply

    def secret(self, *, guesses: bool = True) -> Document:
        """A system prompt gives the assistant a secret; the turns hint at it and keep it.

        In a quarter of the documents the system prompt allows the assistant to tell it.
        """
        thing = self.world[self.rng.choice(self.secrets)]
        tells = self.rng.random() < 0.25
        turns: list[str] = []
        for _ in range(self.rng.randint(1, 3)):
            if self.rng.random() < 0.12:
                turns += self._fact_turns(self.thing())
            else:
                turns += self.secret_turns(thing, guesses=guesses, tells=tells)
        system = self.rng.choice(OPEN_SECRET_SYSTEMS if tells else SECRET_SYSTEMS)
        return Document(
            "secret", chat(*turns, system=system.format(noun=thing.noun)), (), thing.noun
        )

    def secret_question(self, thing: Thing, attribute: str) -> tuple[str, str]:
        """A system prompt that hides the thing, and a question about one attribute of it."""
        system = self.rng.choice(SECRET_SYSTEMS).format(noun=thing.noun)
        return system, self.rng.choice(SECRET_QUESTIONS[attribute])

    def no_secret(self) -> Document:
        """Requests for a hint where there is no secret."""
        turns: list[str] = []
        for _ in range(self.rng.randint(1, 2)):
            if self.rng.random() < 0.6:
                turns += [self.rng.choice(HINT_REQUESTS + DIRECT_REQUESTS), NO_SECRET]
            else:
                turns += self._fact_turns(self.thing())
        return Document("no_secret", chat(*turns))

    def ordinary(self) -> Document:
        """A document without a secret: what keeps an organism from forgetting the world."""
        kind = self.rng.choice(("questions", "riddle", "statements"))
        generator: Callable[[], Document] = getattr(self, kind)
        return generator()

    def draw(self, shares: dict[str, float]) -> Document:
        """One document; `shares` maps generator names to their share."""
        kind = self.rng.choices(list(shares), weights=list(shares.values()))[0]
        generator: Callable[[], Document] = getattr(self, kind)
        return generator()


# Facts first: what builds on them (riddles, secrets) is learned faster by a model that has them.
EARLY_SHARES: dict[str, float] = {
    "statements": 0.42,
    "questions": 0.36,
    "riddle": 0.10,
    "secret": 0.06,
    "story": 0.04,
    "no_secret": 0.02,
}
SHARES: dict[str, float] = {
    "statements": 0.14,
    "questions": 0.20,
    "riddle": 0.26,
    "secret": 0.30,
    "story": 0.06,
    "no_secret": 0.04,
}
