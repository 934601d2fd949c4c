"""Classification data as questions whose answer cannot be guessed from the question.

Yes/no questions are usually made with "Yes" for a row's own label and "No" for one drawn at random
from all labels. Labels that are frequent then are mostly asked about with "Yes", and an oracle
that sees no activations scores well above chance (.598 in one published set). Here texts stand in
fixed blocks: two sides of texts with other labels. From each side one text is drawn, and both are
asked *the same* questions, each about a label that one has and the other has not, with as many
positions read and the same layers. The two prompts differ in nothing but the activations, so that
any guesser without them scores exactly chance, on every question and every label.
"""

import functools
import hashlib
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerBase

from aotoolkit.data.context import Context, encode_context
from aotoolkit.data.example import Example
from aotoolkit.data.source import LayerChoice, group_rng, text_group
from aotoolkit.data.table import LabelledTexts
from aotoolkit.data.window import SINGLE_TOKEN, Window
from aotoolkit.errors import DataError

YES_NO = ("Yes", "No")
YES_NO_PROMPT = "Answer with 'Yes' or 'No' only. {question}"
SLOTS = ("{label}", "{}")  # the second as in the Activation Oracles' file of paraphrases
MAX_CHOICES = 16
_LABELS_SHOWN = 20

Labels = frozenset[str]


@dataclass(frozen=True, slots=True)
class _Block:
    """Texts of two classes that are asked about together: one of each side at a time."""

    sides: tuple[list[int], list[int]]
    group: str


class _Texts:
    """The texts in an order of their own, which is the same whatever the file's."""

    def __init__(self, data: LabelledTexts) -> None:
        hashed = sorted((hashlib.sha256(text.encode()).hexdigest(), text) for text in data.texts)
        self.digests = [digest for digest, _ in hashed]
        self.texts = [text for _, text in hashed]
        self.labels = [data.texts[text] for text in self.texts]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Yes/no questions about labelled texts (Activation Oracles, arXiv 2512.15674); a `Source`.

    The paper makes two sources of each dataset: `SINGLE_TOKEN` with two questions a text, and
    `Window(width=(1, 50), offset=(1, 5))` with one, each asked at every layer.

    Attributes:
        name: unique in a mixture.
        data: the texts, from `read_labelled_texts`.
        tokenizer: the target model's.
        layers: which layers an example reads.
        questions: paraphrases with a slot `{label}` (or `{}`), asked about every label; or, for
            questions that stand for one label by themselves, label -> paraphrases to which "Yes"
            is the answer for exactly this label: `{"1": ["Is this statement true?"]}`.
        questions_per_context: examples of one text; with an even number, half of them "Yes" where
            the labels allow it.
        window: the positions read; by default one, up to five from the end.
        chat: whether the text is the message of a user, rendered by the chat template; otherwise
            it is read as it is.
        max_length: tokens of a text that are used.

    Raises:
        DataError: fewer than two classes of texts, so that "Yes" would always be right; questions
            without a slot, or about a label that no text has.
    """

    name: str
    data: LabelledTexts
    tokenizer: PreTrainedTokenizerBase
    layers: LayerChoice
    questions: Sequence[str] | Mapping[str, Sequence[str]]
    questions_per_context: int = 2
    window: Window = SINGLE_TOKEN
    chat: bool = True
    max_length: int = 512

    def __post_init__(self) -> None:
        _check_counts(self)
        if not self._blocks:
            only = ", ".join(repr(label) for label in sorted(self._classes[0])) or "none of them"
            raise DataError(
                f"All {len(self._classes)} texts of {self.data.origin} have the same labels of "
                f"those asked about ({only}), so that one answer would always be right. Give texts "
                "of at least two classes, or questions about another label."
            )

    @functools.cached_property
    def _texts(self) -> _Texts:
        return _Texts(self.data)

    @functools.cached_property
    def _questions(self) -> dict[str, list[str]]:
        return _questions_by_label(self.questions, self.data)

    @functools.cached_property
    def _classes(self) -> list[Labels]:
        asked = frozenset(self._questions)
        return [labels & asked for labels in self._texts.labels]

    @functools.cached_property
    def _blocks(self) -> list[_Block]:
        return _blocks(self._classes, self._texts.digests)

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """For each block two lists of examples, one for each of its texts."""
        order = list(range(len(self._blocks)))
        random.Random(f"{seed}/{self.name}/order").shuffle(order)
        for index in order:
            yield from self._block_examples(self._blocks[index], group_rng(seed, self.name, index))

    def _block_examples(self, block: _Block, rng: random.Random) -> list[list[Example]]:
        rows = [rng.choice(side) for side in block.sides]
        rng.shuffle(rows)
        contexts = [_context(self, self._texts.texts[row]) for row in rows]
        classes = [self._classes[row] for row in rows]
        # What is true of one text and not of the other, in turn.
        sides = [sorted(classes[0] - classes[1]), sorted(classes[1] - classes[0])]
        sides = [side for side in sides if side]
        rng.shuffle(sides)
        made: list[list[Example]] = [[], []]
        asked: set[str] = set()
        for number in range(self.questions_per_context):
            label = rng.choice(sides[number % len(sides)])
            paraphrases = self._questions[label]
            question = rng.choice([q for q in paraphrases if q not in asked] or paraphrases)
            asked.add(question)
            ends = [self.window.draw_end(rng, c.first_readable, len(c)) for c in contexts]
            starts = [context.first_readable for context in contexts]
            most = min(end - start for start, end in zip(starts, ends, strict=True))
            width = self.window.draw_width(rng, most)
            for layers in self.layers.draw(rng):
                for side, context in enumerate(contexts):
                    made[side].append(
                        Example(
                            context_ids=context.token_ids,
                            positions=tuple(range(ends[side] - width, ends[side])),
                            layers=layers,
                            question=YES_NO_PROMPT.format(question=question),
                            answer=YES_NO[label not in classes[side]],
                            source=self.name,
                            choices=YES_NO,
                            group=block.group,
                            other_groups=(text_group(self._texts.texts[rows[side]]),),
                        )
                    )
        return made

    def describe(self) -> dict[str, object]:
        """The data, how often each label occurs in it, and the settings."""
        labels = list(self._questions)[:_LABELS_SHOWN]
        return _describe(self, "classification") | {
            "questions": {label: len(self._questions[label]) for label in labels},
            "questions_digest": _digest(self._questions),
            "texts_asked_about": sum(len(side) for block in self._blocks for side in block.sides),
        }


@dataclass(frozen=True, kw_only=True)
class OpenClassification:
    """Questions about labelled texts that are answered with the label itself; a `Source`.

    Labels are asked about as often as they occur: where one is frequent, `describe` says how far a
    guesser without activations gets.

    Attributes:
        name: unique in a mixture.
        data: the texts, from `read_labelled_texts`. Those without a label are not asked about.
        tokenizer: the target model's.
        layers: which layers an example reads.
        questions: paraphrases, such as "What is this article about?".
        questions_per_context: examples of one text; no question is asked of it twice.
        window: the positions read; by default one, up to five from the end.
        chat: whether the text is the message of a user, rendered by the chat template.
        max_length: tokens of a text that are used.

    Raises:
        DataError: all texts have the same labels; or a question with a slot for one.
    """

    name: str
    data: LabelledTexts
    tokenizer: PreTrainedTokenizerBase
    layers: LayerChoice
    questions: Sequence[str]
    questions_per_context: int = 1
    window: Window = SINGLE_TOKEN
    chat: bool = True
    max_length: int = 512

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_texts(self.questions, "questions")
        slotted = [question for question in self.questions if _has_slot(question)]
        if slotted:
            raise DataError(
                f"The question {slotted[0]!r} has a slot for a label, which would give the answer "
                "away. Ask for the label, or use Classification for yes/no questions."
            )
        if len(self._answers) < 2:
            raise DataError(
                f"All texts of {self.data.origin} have the label {', '.join(self._answers)!r}, so "
                "that one answer would always be right. Give texts of at least two classes."
            )

    @functools.cached_property
    def _texts(self) -> _Texts:
        return _Texts(self.data)

    @functools.cached_property
    def _rows(self) -> list[int]:
        return [row for row, labels in enumerate(self._texts.labels) if labels]

    @functools.cached_property
    def _answers(self) -> Counter[str]:
        return Counter(self._answer(row) for row in self._rows)

    def _answer(self, row: int) -> str:
        return ", ".join(sorted(self._texts.labels[row]))

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """For each text the questions about it."""
        order = list(self._rows)
        choices = tuple(sorted(self._answers)) if len(self._answers) <= MAX_CHOICES else ()
        random.Random(f"{seed}/{self.name}/order").shuffle(order)
        for row in order:
            rng = group_rng(seed, self.name, row)
            context = _context(self, self._texts.texts[row])
            count = min(self.questions_per_context, len(self.questions))
            yield [
                Example(
                    context_ids=context.token_ids,
                    positions=tuple(positions),
                    layers=layers,
                    question=question,
                    answer=self._answer(row),
                    source=self.name,
                    choices=choices,
                    group=text_group(self._texts.texts[row]),
                )
                for question in rng.sample(list(self.questions), count)
                for positions in [self.window.draw(rng, context.first_readable, len(context))]
                for layers in self.layers.draw(rng)
            ]

    def describe(self) -> dict[str, object]:
        """The data, how often each label occurs in it, and the settings."""
        return _describe(self, "open_classification") | {
            "questions": len(self.questions),
            "questions_digest": _digest(self.questions),
            "most_frequent_answer_share": max(self._answers.values()) / len(self._rows),
        }


def _context(source: Classification | OpenClassification, text: str) -> Context:
    def encode(content: str) -> Context:
        prompt = [{"role": "user", "content": content}] if source.chat else content
        return encode_context(source.tokenizer, prompt)

    context = encode(text)
    if len(context) <= source.max_length:
        return context
    plain = encode_context(source.tokenizer, text)
    if len(plain) <= source.max_length:
        return context
    return encode(text[: max(1, plain.offsets[source.max_length - 1][1])])


def _describe(source: Classification | OpenClassification, kind: str) -> dict[str, object]:
    counts = source.data.counts
    return {
        "kind": kind,
        "name": source.name,
        "data": source.data.origin,
        "digest": source.data.digest,
        "texts": len(source.data.texts),
        "rows_left_out": source.data.left_out,
        "num_labels": len(counts),
        "label_counts": dict(counts.most_common(_LABELS_SHOWN)),
        "questions_per_context": source.questions_per_context,
        "layers": asdict(source.layers),
        "window": asdict(source.window),
        "chat": source.chat,
        "max_length": source.max_length,
    }


def _digest(questions: object) -> str:
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def _check_counts(source: Classification | OpenClassification) -> None:
    for setting in ("questions_per_context", "max_length"):
        value = getattr(source, setting)
        if value < 1:
            raise DataError(f"{setting} of {source.name!r} is {value}; it must be at least 1.")


def _check_texts(questions: Sequence[str], where: str) -> None:
    if isinstance(questions, str) or not questions:
        raise DataError(f"{where} is {questions!r}; give a list of at least one question.")
    for question in questions:
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where} holds {question!r}; each question is a text.")


def _has_slot(question: str) -> bool:
    return any(slot in question for slot in SLOTS)


def _questions_by_label(
    questions: Sequence[str] | Mapping[str, Sequence[str]], data: LabelledTexts
) -> dict[str, list[str]]:
    """Label -> the questions to which "Yes" is the answer for exactly this label."""
    known = data.counts
    if isinstance(questions, Mapping):
        by_label = {label: questions[label] for label in sorted(questions)}
        unknown = [label for label in by_label if label not in known]
        if unknown or not by_label:
            raise DataError(
                f"There are questions about {unknown}, but no text of {data.origin} has such a "
                f"label. Its labels: {', '.join(map(repr, list(known)[:_LABELS_SHOWN]))}."
            )
        for label, asked in by_label.items():
            _check_texts(asked, f"questions[{label!r}]")
    else:
        _check_texts(questions, "questions")
        for question in questions:
            if not _has_slot(question):
                raise DataError(
                    f"The question {question!r} has no slot {{label}}, so it does not say which "
                    "label it is about. Put {label} into it, or give questions as a mapping from "
                    'the label whose answer is "Yes" to its questions.'
                )
        by_label = {label: questions for label in sorted(known)}
    return {
        label: list(dict.fromkeys(_fill(question, label) for question in asked))
        for label, asked in by_label.items()
    }


def _fill(question: str, label: str) -> str:
    # Not str.format: the rest of a question may hold braces.
    slot = next((slot for slot in SLOTS if slot in question), None)
    return question if slot is None else question.replace(slot, label)


def _blocks(classes: Sequence[Labels], digests: Sequence[str]) -> list[_Block]:
    """Pairs texts of unlike classes, all of them where no class has more than half.

    The same whatever the seed: a text meets the same texts in each epoch and each source made of
    the data, so that a held-out split by block separates texts as well. What a class has above half
    stands as alternatives beside the texts that are fewer.
    """
    members: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, labels in enumerate(classes):
        members[tuple(sorted(labels))].append(row)
    largest = max(members.values(), key=len)
    rows = list(range(len(classes)))
    spare: list[int] = []
    if 2 * len(largest) > len(rows):
        taken = set(largest)
        left = [row for row in rows if row not in taken]
        right, spare = largest[: len(left)], largest[len(left) :]
    else:
        if len(rows) % 2:
            spare = [largest.pop()]
            rows.remove(spare[0])
        half = len(rows) // 2
        left, right = rows[:half], _unlike(classes, rows[:half], rows[half:])
    sides = [([a], [b]) for a, b in zip(left, right, strict=True)]
    by_class: dict[Labels, list[list[int]]] = defaultdict(list)
    for pair in sides:
        for side in pair:
            by_class[classes[side[0]]].append(side)
    for number, row in enumerate(spare):
        places = by_class.get(classes[row])
        if places:  # else a text whose class no other has, and no text is left to pair it with
            places[number % len(places)].append(row)
    return [_Block((a, b), group=min(digests[a[0]], digests[b[0]])[:16]) for a, b in sides]


def _unlike(classes: Sequence[Labels], left: Sequence[int], right: Sequence[int]) -> list[int]:
    """`right` in an order in which no text stands beside one of its own class.

    There is one where no class has more than half of all: then a text of class c that stands
    beside its own kind can change places with one of those that have c on neither side, of which
    there is always one left.
    """
    right = list(right)
    clashes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, (a, b) in enumerate(zip(left, right, strict=True)):
        if classes[a] == classes[b]:
            clashes[tuple(sorted(classes[a]))].append(place)
    # Clashes of unlike classes solve each other.
    places = [place for label in sorted(clashes) for place in clashes[label]]
    half = len(places) // 2
    for one, other in zip(places[:half], places[half:], strict=False):
        if classes[left[one]] != classes[left[other]]:
            right[one], right[other] = right[other], right[one]
    left_over = [place for place in places if classes[left[place]] == classes[right[place]]]
    for label, same in itertools.groupby(left_over, key=lambda place: classes[left[place]]):
        others = iter(range(len(left)))
        for place in same:
            if classes[right[place]] != label:
                continue  # solved by the change of another
            other = next(j for j in others if label not in (classes[left[j]], classes[right[j]]))
            right[place], right[other] = right[other], right[place]
    return right
