"""What the nano oracle is trained on: questions about the base's own activations.

Five tasks, after both papers: *naming* (a noun at its own token), *reading* (the words at the
read positions), *context prediction* (tokens before or after them), *topic* (classification and
naming of the thing that a text is about) and *secret* (LatentQA: a system prompt hides a word, and
only later turns are read). `nano.yaml` says how much of each, and in which order.

Words held out by the world are never a secret here: no document whose system prompt hides one is
used, in any task, and no question about a secret has one as its answer. They do occur as what
they are elsewhere, words of the text and topics that it is openly about.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from transformers import PreTrainedTokenizerFast

from aotoolkit.data import Example, LayerChoice
from aotoolkit.data.source import group_rng
from aotoolkit.errors import DataError
from aotoolkit.nano import questions as wording
from aotoolkit.nano.corpus import FACT_ATTRIBUTES, Corpus, Document
from aotoolkit.nano.tokenizer import Encoder, Turn
from aotoolkit.nano.world import load_world

Task = Literal[
    "naming",
    "reading",
    "context_prediction",
    "topic",
    "secret",
    "held_out_secret",
    "secret_dialogue",
    "word",
    "word_described",
    "whole_document",
]

MAX_POSITIONS = 40

WORD_ANSWER = "The {noun}."
ATTRIBUTE_ANSWERS = {
    "colour": "It is {value}.",
    "place": "In the {value}.",
    "feel": "It feels {value}.",
    "category": "A kind of {value}.",
}
TEXT_ANSWER = "It says:{text}"
YES_NO = ("No.", "Yes.")
# Of secret dialogues, those that are asked what the secret is like, too.
DESCRIBED_SHARE = 0.35


class NanoSource:
    """One task as a source of endless examples, in the layers that a recipe names.

    Args:
        name: see `Source`.
        tokenizer: the nano tokenizer.
        layers: which layers each example reads.
        task: what is asked: one of the tasks above; `held_out_secret` is `secret` with the
            validation words, which is scored and never trained on; `secret_dialogue` reads the
            dialogue of a secret up to one of its replies and asks for the word; `word` is that or
            `naming`, one example a document, `word_described` the same with an answer that says
            more, and `whole_document` all of an ordinary document: these for a vector transform.

    Raises:
        DataError: there is no such task.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: PreTrainedTokenizerFast,
        layers: LayerChoice,
        task: Task,
    ) -> None:
        if task not in get_args(Task):
            raise DataError(f"task {task!r} is unknown. Give one of {get_args(Task)}.")
        self.name = name
        self.tokenizer = tokenizer
        self.layers = layers
        self.task: Task = task
        self.world = load_world()
        self.encoder = Encoder(tokenizer)

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """Lists of examples that share one document, without end."""
        for index in itertools.count():
            yield self.draw(group_rng(seed, self.name, index))

    def draw(self, rng: random.Random) -> list[Example]:
        """One example, or one for each choice of layers: a batch should hold many documents."""
        return getattr(self, f"_{self.task}")(rng)

    def describe(self) -> dict[str, object]:
        """See `Source`."""
        things = repr(list(self.world.things.values()))
        return {
            "kind": "nano",
            "task": self.task,
            "layers": dataclasses.asdict(self.layers),
            "digest": hashlib.sha256(things.encode()).hexdigest(),
        }

    def _ordinary_document(self, rng: random.Random) -> Document:
        """A document of any kind; as secrets only those of training."""
        corpus = Corpus(self.world, rng, secrets=self.world.training_secrets)
        kind = rng.choice(("statements", "questions", "riddle", "secret", "story"))
        return getattr(corpus, kind)()

    def _examples(
        self,
        rng: random.Random,
        ids: tuple[int, ...],
        positions: Sequence[int],
        question: str,
        answer: str,
        kind: str,
        choices: tuple[str, ...] = (),
    ) -> list[Example]:
        """One example for each choice of layers; `kind` is what figures are listed by."""
        return [
            Example(
                context_ids=ids[: positions[-1] + 1],
                positions=tuple(positions),
                layers=layers,
                question=question,
                answer=answer,
                source=kind,
                choices=choices,
            )
            for layers in self.layers.draw(rng)
        ]

    def _reading(self, rng: random.Random) -> list[Example]:
        """One to four contiguous tokens inside a message: which words are they?"""
        ids, turns = self.encoder.document(self._ordinary_document(rng))
        turn = rng.choice([turn for turn in turns if turn.end > turn.content])
        start = rng.randrange(turn.content, turn.end)
        end = min(turn.end, start + rng.randint(1, 4))
        question, answer = rng.choice(wording.READ_WORDS), self._says(ids[start:end])
        return self._examples(rng, ids, range(start, end), question, answer, "reading")

    def _naming(self, rng: random.Random) -> list[Example]:
        """A noun's own token alone, the easiest thing to read: which thing is it?"""
        document = Corpus(self.world, rng).questions()
        ids, turns = self.encoder.document(document)
        pair = rng.randrange(len(document.nouns))
        noun = document.nouns[pair]
        position = ids.index(self.encoder.text(f" {noun}")[0], turns[2 * pair].start)
        question, answer = rng.choice(wording.TOPIC), WORD_ANSWER.format(noun=noun)
        return self._examples(rng, ids, (position,), question, answer, "naming")

    def _says(self, ids: Sequence[int]) -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return TEXT_ANSWER.format(text=text if text.startswith(" ") else f" {text}")

    def _context_prediction(self, rng: random.Random) -> list[Example]:
        """One to ten contiguous tokens: what came before them, or comes after?"""
        ids, _ = self.encoder.document(self._ordinary_document(rng))
        count = rng.randint(1, 8)
        width = rng.randint(1, 10)
        if count + width > len(ids):
            return []
        if rng.random() < 0.5:
            start = rng.randrange(count, len(ids) - width + 1)
            target = ids[start - count : start]
            question = wording.PREVIOUS_TOKENS.format(count=count)
        else:
            start = rng.randrange(0, len(ids) - width - count + 1)
            target = ids[start + width : start + width + count]
            question = wording.NEXT_TOKENS.format(count=count)
        positions, answer = range(start, start + width), self._says(target)
        return self._examples(rng, ids, positions, question, answer, "context_prediction")

    def _topic(self, rng: random.Random) -> list[Example]:
        """A text about a thing: which thing, what is true of it?"""
        corpus = Corpus(self.world, rng)
        document = getattr(corpus, rng.choice(("statements", "questions", "riddle")))()
        ids, turns = self.encoder.document(document)
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
        return self._about(rng, ids, positions, noun, it="thing", prefix="topic")

    def _secret(self, rng: random.Random) -> list[Example]:
        """A secret given in a system prompt that is not read."""
        secrets = self.world.training_secrets
        document = Corpus(self.world, rng, nouns=secrets, secrets=secrets).secret()
        return self._about_secret(rng, document, prefix="secret")

    def _held_out_secret(self, rng: random.Random) -> list[Example]:
        """As `secret`, for the validation words: never trained on, only scored."""
        document = Corpus(self.world, rng, secrets=self.world.validation_secrets).secret(
            guesses=False
        )
        return self._about_secret(rng, document, prefix="held_out_secret")

    def _about_secret(
        self, rng: random.Random, document: Document, *, prefix: str
    ) -> list[Example]:
        assert document.secret is not None
        ids, turns = self.encoder.document(document)
        positions = _read_positions(rng, turns[1:])
        return self._about(rng, ids, positions, document.secret, it="secret", prefix=prefix)

    def _about(
        self,
        rng: random.Random,
        ids: tuple[int, ...],
        positions: Sequence[int],
        noun: str,
        *,
        it: Literal["thing", "secret"],
        prefix: str,
    ) -> list[Example]:
        """A question about a thing: its name, all that it is like, an attribute, or yes or no."""
        question, answer, kind = self._question(rng, noun, it=it)
        choices = YES_NO if kind == "yes_no" else ()
        return self._examples(rng, ids, positions, question, answer, f"{prefix}_{kind}", choices)

    def _question(self, rng: random.Random, noun: str, *, it: str) -> tuple[str, str, str]:
        """A question about a thing, its answer, and its kind."""
        thing = self.world[noun]
        words, described, attributes = (
            (wording.SECRET_WORD, wording.SECRET_DESCRIBED, wording.SECRET_ATTRIBUTE)
            if it == "secret"
            else (wording.TOPIC, wording.TOPIC_DESCRIBED, wording.TOPIC_ATTRIBUTE)
        )
        roll = rng.random()
        if roll < 0.35:
            return rng.choice(words), WORD_ANSWER.format(noun=noun), "word"
        if roll < 0.5:
            return rng.choice(described), self._described(noun), "described"
        name = rng.choice(FACT_ATTRIBUTES)
        if roll < 0.75:
            answer = ATTRIBUTE_ANSWERS[name].format(value=thing.value(name))
            return attributes[name], answer, "attribute"
        truth = rng.random() < 0.5
        value = Corpus(self.world, rng).some_value(thing, name, truth=truth)
        question = rng.choice(wording.YES_NO_QUESTIONS[name]).format(it=it, value=value)
        return wording.YES_NO_PREFIX + question, YES_NO[truth], "yes_no"

    def _described(self, noun: str) -> str:
        """What a thing is like, and then what it is."""
        thing = self.world[noun]
        said = [ATTRIBUTE_ANSWERS[name].format(value=thing.value(name)) for name in FACT_ATTRIBUTES]
        return " ".join([*said, WORD_ANSWER.format(noun=noun)])

    def _secret_dialogue(
        self, rng: random.Random, *, described: float = DESCRIBED_SHARE
    ) -> list[Example]:
        """All turns up to a reply, none of which names the secret: which word is it?

        A share `described` of them is asked what it is like, too.
        """
        noun, ids, positions, _ = self.dialogue_about_secret(rng)
        if rng.random() < described:
            question, answer = rng.choice(wording.SECRET_DESCRIBED), self._described(noun)
            kind = "secret_dialogue_described"
        else:
            question, answer = rng.choice(wording.SECRET_WORD), WORD_ANSWER.format(noun=noun)
            kind = "secret_dialogue"
        return self._examples(rng, ids, positions, question, answer, kind)

    def dialogue_about_secret(self, rng: random.Random) -> tuple[str, tuple[int, ...], range, int]:
        """A dialogue whose system turn tells a word, read up to a reply and not naming it so far.

        Returns:
            The word, the tokens of the whole, what is read, and where the turn after the system's
            begins.
        """
        corpus = Corpus(self.world, rng, secrets=self.world.training_secrets)
        while True:
            document = corpus.secret(guesses=False)
            assert document.secret is not None
            ids, turns = self.encoder.document(document)
            reply = rng.choice([turn for turn in turns if turn.role == "assistant"])
            begin, end = turns[1].start, reply.end + 1
            token = self.encoder.text(f" {document.secret}")[0]
            if token not in ids[begin:end]:
                return document.secret, ids, range(max(begin, end - MAX_POSITIONS), end), begin

    def _word(self, rng: random.Random) -> list[Example]:
        """One example whose answer is a word: at its own token, or all over a dialogue."""
        if rng.random() < 0.7:
            return self._secret_dialogue(rng, described=0.0)
        return self._naming(rng)

    def _word_described(self, rng: random.Random) -> list[Example]:
        """As `word`, and the answer goes on to what the thing is like, and names it again.

        Fine-tuning stores what it said, and that is what things are like: a map towards all of it
        takes more of an organism with it than one towards the name, and that the name is there
        twice keeps things with the same attributes apart.
        """
        if rng.random() < 0.8:
            examples = self._secret_dialogue(rng, described=0.0)
        else:
            examples = self._naming(rng)
        noun = examples[0].answer.removeprefix("The ").removesuffix(".")
        answer = f"{examples[0].answer} {self._described(noun)}"
        return [dataclasses.replace(example, answer=answer) for example in examples]

    def _whole_document(self, rng: random.Random) -> list[Example]:
        """All of an ordinary document.

        Organisms are asked without a system prompt, so half of the dialogues with one are taken
        without it: a token's mean must not depend on there being one.
        """
        ids, turns = self.encoder.document(self._ordinary_document(rng))
        if turns[0].role == "system" and rng.random() < 0.5:
            ids = ids[turns[1].start :]
        question = rng.choice(wording.READ_WORDS)
        return self._examples(rng, ids, range(len(ids)), question, self._says(ids), self.task)


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
