"""What the nano oracle is trained on: questions about the base's own activations.

Five sources, after both papers: *naming* (a noun at its own token), *reading* (the words at the
read positions), *context prediction* (tokens before or after them), *topic* (classification and
naming of the thing that a text is about) and *secret* (LatentQA: a system prompt hides a word, and
only later turns are read).

Words held out by the world are never a secret here: no document whose system prompt hides one is
used, in any source, and no question about a secret has one as its answer. They do occur as what
they are elsewhere, words of the text and topics that it is openly about.

An oracle that starts on the whole mixture learns which answers are likely and never comes to read
(`docs/nano.md`), so the first part of training is naming, reading and topics alone.
"""

import random
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from aotoolkit.data.example import Example
from aotoolkit.nano import questions as wording
from aotoolkit.nano.corpus import FACT_ATTRIBUTES, Corpus, Document
from aotoolkit.nano.tokenizer import Encoder, Turn
from aotoolkit.nano.world import WORLD_SEED, World

READ_LAYERS = (2, 4, 6)
MAX_POSITIONS = 40
EXAMPLES_PER_CONTEXT = 6

WARM_UP_SHARES = {"naming": 0.5, "reading": 0.3, "topic": 0.2}
SHARES = {"reading": 0.03, "context_prediction": 0.09, "topic": 0.28, "secret": 0.60}
WARM_UP_PART = 0.08

WORD_ANSWER = "The {noun}."
ATTRIBUTE_ANSWERS = {
    "colour": "It is {value}.",
    "place": "In the {value}.",
    "feel": "It feels {value}.",
    "category": "A kind of {value}.",
}
TEXT_ANSWER = "It says:{text}"


class OracleMixture:
    """Draws training examples for the nano oracle.

    Args:
        world: the world; its split says which words are held out.
        tokenizer: the nano tokenizer.
        total_steps: length of the run, by which the warm-up ends; None skips the warm-up.
    """

    def __init__(
        self, world: World, tokenizer: PreTrainedTokenizerFast, *, total_steps: int | None = None
    ) -> None:
        self.world = world
        self.encoder = Encoder(tokenizer)
        self.tokenizer = tokenizer
        self.total_steps = total_steps

    def __call__(self, step: int, rng: random.Random) -> list[Example]:
        """Some examples that share one context."""
        warming = self.total_steps is not None and step < WARM_UP_PART * self.total_steps
        shares = WARM_UP_SHARES if warming else SHARES
        source = rng.choices(list(shares), weights=list(shares.values()))[0]
        return getattr(self, source)(rng)

    def training(self, count: int, *, seed: int = 0) -> list[Example]:
        """`count` examples in training order; the warm-up ends where it does in `total_steps`."""
        rng = random.Random(f"training/{seed}")
        examples: list[Example] = []
        while len(examples) < count:
            examples += self(len(examples) * (self.total_steps or 0) // count, rng)
        return examples[:count]

    def _ordinary_document(self, rng: random.Random) -> Document:
        """A document of any kind; as secrets only those of training."""
        corpus = Corpus(self.world, rng, secrets=self.world.training_secrets)
        kind = rng.choice(("statements", "questions", "riddle", "secret", "story"))
        return getattr(corpus, kind)()

    def _example(
        self,
        rng: random.Random,
        ids: tuple[int, ...],
        positions: Sequence[int],
        question: str,
        answer: str,
        source: str,
    ) -> Example:
        return Example(
            context_ids=ids[: positions[-1] + 1],
            positions=tuple(positions),
            layers=(rng.choice(READ_LAYERS),),
            question=question,
            answer=answer,
            source=source,
        )

    def reading(self, rng: random.Random) -> list[Example]:
        """One to four contiguous tokens inside a message: which words are they?"""
        ids, turns = self.encoder.document(self._ordinary_document(rng))
        examples = []
        for _ in range(EXAMPLES_PER_CONTEXT):
            turn = rng.choice([turn for turn in turns if turn.end > turn.content])
            start = rng.randrange(turn.content, turn.end)
            end = min(turn.end, start + rng.randint(1, 4))
            examples.append(
                self._example(
                    rng,
                    ids,
                    range(start, end),
                    rng.choice(wording.READ_WORDS),
                    self._says(ids[start:end]),
                    "reading",
                )
            )
        return _shared_context(examples)

    def naming(self, rng: random.Random) -> list[Example]:
        """A noun's own token alone, the easiest thing to read: which thing is it?"""
        document = Corpus(self.world, rng).questions()
        ids, turns = self.encoder.document(document)
        examples = []
        for pair, noun in enumerate(document.nouns):
            token = self.encoder.text(f" {noun}")[0]
            position = ids.index(token, turns[2 * pair].start)
            examples += [
                self._example(
                    rng,
                    ids,
                    (position,),
                    rng.choice(wording.TOPIC),
                    WORD_ANSWER.format(noun=noun),
                    "naming",
                )
                for _ in range(2)
            ]
        return _shared_context(examples)

    def _says(self, ids: Sequence[int]) -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return TEXT_ANSWER.format(text=text if text.startswith(" ") else f" {text}")

    def context_prediction(self, rng: random.Random) -> list[Example]:
        """One to ten contiguous tokens: what came before them, or comes after?"""
        ids, _ = self.encoder.document(self._ordinary_document(rng))
        examples = []
        for _ in range(EXAMPLES_PER_CONTEXT):
            count = rng.randint(1, 8)
            width = rng.randint(1, 10)
            if count + width > len(ids):
                continue
            if rng.random() < 0.5:
                start = rng.randrange(count, len(ids) - width + 1)
                target = ids[start - count : start]
                question = wording.PREVIOUS_TOKENS.format(count=count)
            else:
                start = rng.randrange(0, len(ids) - width - count + 1)
                target = ids[start + width : start + width + count]
                question = wording.NEXT_TOKENS.format(count=count)
            positions = range(start, start + width)
            examples.append(
                self._example(
                    rng, ids, positions, question, self._says(target), "context_prediction"
                )
            )
        return _shared_context(examples)

    def topic(self, rng: random.Random) -> list[Example]:
        """A text about a thing: which thing, what is true of it?"""
        corpus = Corpus(self.world, rng)
        document = getattr(corpus, rng.choice(("statements", "questions", "riddle")))()
        ids, turns = self.encoder.document(document)
        examples = []
        for _ in range(EXAMPLES_PER_CONTEXT):
            if document.kind == "statements":
                noun = document.nouns[0]
                token = self.encoder.text(f" {noun}")[0]
                first = ids.index(token) if token in ids else 0
                start = rng.randrange(first, turns[0].end)
                positions = range(start, min(turns[0].end, start + rng.randint(1, 10)))
            else:
                pair = rng.randrange(len(document.nouns))
                noun = document.nouns[pair]
                positions = _read_positions(rng, turns[2 * pair : 2 * pair + 2])
            question, answer, kind = self._question(rng, noun, it="thing")
            source = "topic_yes_no" if kind == "yes_no" else f"topic_{kind}"
            examples.append(self._example(rng, ids, positions, question, answer, source))
        return _shared_context(examples)

    def secret(self, rng: random.Random) -> list[Example]:
        """A secret given in a system prompt that is not read."""
        corpus = Corpus(
            self.world,
            rng,
            nouns=self.world.training_secrets,
            secrets=self.world.training_secrets,
        )
        return self._secret_examples(rng, corpus.secret())

    def held_out_secret(self, rng: random.Random) -> list[Example]:
        """As `secret`, for the validation words: never trained on, only scored."""
        corpus = Corpus(self.world, rng, secrets=self.world.validation_secrets)
        examples = self._secret_examples(rng, corpus.secret(guesses=False))
        return [
            Example(
                context_ids=example.context_ids,
                positions=example.positions,
                layers=example.layers,
                question=example.question,
                answer=example.answer,
                source=f"held_out_{example.source}",
            )
            for example in examples
        ]

    def _secret_examples(self, rng: random.Random, document: Document) -> list[Example]:
        assert document.secret is not None
        ids, turns = self.encoder.document(document)
        examples = []
        for _ in range(EXAMPLES_PER_CONTEXT):
            positions = _read_positions(rng, turns[1:])
            question, answer, kind = self._question(rng, document.secret, it="secret")
            examples.append(self._example(rng, ids, positions, question, answer, f"secret_{kind}"))
        return _shared_context(examples)

    def _question(self, rng: random.Random, noun: str, *, it: str) -> tuple[str, str, str]:
        """A question about a thing, its answer, and its kind."""
        thing = self.world[noun]
        words, attributes = (
            (wording.SECRET_WORD, wording.SECRET_ATTRIBUTE)
            if it == "secret"
            else (wording.TOPIC, wording.TOPIC_ATTRIBUTE)
        )
        roll = rng.random()
        if roll < 0.5:
            return rng.choice(words), WORD_ANSWER.format(noun=noun), "word"
        name = rng.choice(FACT_ATTRIBUTES)
        if roll < 0.75:
            answer = ATTRIBUTE_ANSWERS[name].format(value=thing.value(name))
            return attributes[name], answer, "attribute"
        truth = rng.random() < 0.5
        value = Corpus(self.world, rng).some_value(thing, name, truth=truth)
        question = rng.choice(wording.YES_NO_QUESTIONS[name]).format(it=it, value=value)
        return wording.YES_NO_PREFIX + question, "Yes." if truth else "No.", "yes_no"

    def contexts(self, count: int, *, seed: int = 0) -> Iterator[tuple[int, ...]]:
        """Ordinary documents as token ids, for the statistics of a vector transform.

        Organisms are asked without a system prompt, so half of the dialogues with one are taken
        without it: a token's mean must not depend on there being one.
        """
        rng = random.Random(f"contexts/{seed}")
        for _ in range(count):
            document = self._ordinary_document(rng)
            ids, turns = self.encoder.document(document)
            if turns[0].role == "system" and rng.random() < 0.5:
                ids = ids[turns[1].start :]
            yield ids

    def manifest(self, examples: int) -> tuple[dict[str, object], ...]:
        """What an oracle was trained on, one entry a source."""
        parts = {name: (1 - WARM_UP_PART) * share for name, share in SHARES.items()}
        for name, share in WARM_UP_SHARES.items():
            parts[name] = parts.get(name, 0.0) + WARM_UP_PART * share
        return tuple(
            {"name": name, "examples": round(share * examples), "seed": WORLD_SEED}
            for name, share in parts.items()
        )

    def validation(self, *, seed: int = 12345, contexts: int = 24) -> list[Example]:
        """Held-out examples of every source, the validation words among them."""
        rng = random.Random(seed)
        sources = ("naming", "reading", "context_prediction", "topic", "secret", "held_out_secret")
        examples: list[Example] = []
        for source in sources:
            for _ in range(contexts * (2 if "secret" in source else 1)):
                examples += getattr(self, source)(rng)
        return examples


def _read_positions(rng: random.Random, turns: Sequence[Turn]) -> range:
    """Positions in some turns: a reply header, a whole reply, the whole dialogue or a window."""
    start, end = turns[0].start, turns[-1].end
    roll = rng.random()
    if roll < 0.6:
        reply = rng.choice([turn for turn in turns if turn.role == "assistant"])
        if roll < 0.35:
            return range(reply.content - rng.randint(1, 3), reply.content)
        return range(reply.start, reply.end)
    if roll < 0.8:
        return range(max(start, end - MAX_POSITIONS), end)
    first = rng.randrange(start, end)
    return range(first, min(end, first + rng.randint(1, 10)))


def _shared_context(examples: list[Example]) -> list[Example]:
    """Gives all examples the longest of their contexts: one forward pass then serves them all."""
    if not examples:
        return examples
    longest = max((example.context_ids for example in examples), key=len)
    return [
        Example(
            context_ids=longest,
            positions=example.positions,
            layers=example.layers,
            question=example.question,
            answer=example.answer,
            source=example.source,
        )
        for example in examples
    ]
