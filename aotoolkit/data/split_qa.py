"""Questions over a split: the beginning of a text is read, what comes after it is asked about.

Questions that the beginning's own words answer teach an oracle to invert the text. So each can be
put to a language model that sees the words alone (`text_hardness`), and only those that it gets
wrong are kept: what is left needs what the activations hold beyond the text, such as plans.
"""

import dataclasses
import hashlib
import json
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aotoolkit.atomic import replacing
from aotoolkit.data.context import Message, encode_context, is_text
from aotoolkit.data.example import Example
from aotoolkit.data.source import LayerChoice, group_rng, text_group
from aotoolkit.data.window import FEW_TOKENS, Window, check_share
from aotoolkit.errors import ContextLengthError, DataError
from aotoolkit.tracing.model import TracedModel

READER_PROMPT = (
    "This is the beginning of a text:\n\n{prefix}\n\nIt goes on, but you do not see how. Answer a "
    "question about it in a few words, with your best guess.\nQuestion: {question}"
)
BASE_MODEL_ENDING = "\nAnswer:"
ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitItem:
    """A question about what comes after a text or dialogue.

    Attributes:
        prefix: the text, or the chat messages, that the target model runs over.
        question: about what comes after it.
        answer: what is right.
        group: items of one group never stand on both sides of a held-out split; by default those
            with the same prefix.
        reader: the model that `text_hardness` put the question to; "" where none was.
        reader_answer: what it said, of the prefix's words alone.
    """

    prefix: str | tuple[Message, ...]
    question: str
    answer: str
    group: str = ""
    reader: str = ""
    reader_answer: str = ""

    @property
    def prefix_text(self) -> str:
        """The prefix as a person would read it."""
        if isinstance(self.prefix, str):
            return self.prefix
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.prefix)


@dataclass(frozen=True, slots=True)
class Hardness:
    """What a reader of the words alone made of one question.

    Attributes:
        item: the item or example that was given.
        reader_answer: its greedy answer.
        correct: whether that is the right one.
    """

    item: Any
    reader_answer: str
    correct: bool


def same_answer(given: str, right: str) -> bool:
    """Whether an answer says what the right one says; the default of `text_hardness`.

    Case, punctuation and English articles do not count. It does where the right answer's words
    stand in it one after the other, or where the two share most words (F1 of at least 0.5): a
    reader that said it in other words should not make a question look hard.
    """
    left, wanted = _words(given), _words(right)
    if not ARTICLES.issuperset(wanted):  # the answer "A" is a choice, not an article
        left, wanted = ([w for w in words if w not in ARTICLES] for words in (left, wanted))
    if not wanted:
        return given.strip() == right.strip()
    if any(left[i : i + len(wanted)] == wanted for i in range(len(left) - len(wanted) + 1)):
        return True
    shared = (Counter(left) & Counter(wanted)).total()
    return len(wanted) > 2 and 4 * shared >= len(left) + len(wanted)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def text_hardness(
    items: Sequence[SplitItem] | Sequence[Example],
    reader: TracedModel | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    context_tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    correct: Callable[[str, str], bool] = same_answer,
    progress: bool = True,
) -> list[Hardness]:
    """Puts each question to a model that sees the words of the prefix and no activations.

    It answers greedily, its adapters off. A model with a chat template gets a user's message
    (thinking off, where the template knows that), another one a text to go on with, of which the
    first line counts.

    Args:
        items: what to ask. Of an `Example`, all of its context is shown.
        reader: any causal LM.
        tokenizer: the reader's, where it is no TracedModel.
        context_tokenizer: the one that made the examples' `context_ids`; not needed for items.
        batch_size: prompts in one batch; those of like length go together.
        max_new_tokens: the most tokens of an answer.
        correct: (its answer, the right one) -> whether it is right.
        progress: whether to show a progress bar.

    Returns:
        For each item, in order, the reader's answer and whether it is right. Hard are those that
        are not `correct`.

    Raises:
        DataError: a tokenizer is needed and was not given, or a number below 1.
        ContextLengthError: a prefix does not fit into the reader's context.
    """
    if not isinstance(reader, TracedModel):
        if tokenizer is None:
            raise DataError(
                f"The reader is a {type(reader).__name__}; give its tokenizer as well "
                "(tokenizer=), or a TracedModel."
            )
        reader = TracedModel(reader, tokenizer)
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise DataError(f"{name} is {value}; it must be at least 1.")
    chat = bool(reader.tokenizer.chat_template)
    prompts = [
        _reader_ids(reader.tokenizer, _shown(item, context_tokenizer), item.question)
        for item in items
    ]
    limit = reader.context_length
    for item, ids in zip(items, prompts, strict=True):
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise ContextLengthError(
                f"The question {item.question[:60]!r} with its prefix has {len(ids)} tokens, and "
                f"{max_new_tokens} are left for the answer; the context of the reader "
                f"{reader.name} is {limit}. Leave long prefixes out, or give another reader."
            )
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    with tqdm(total=len(prompts), desc="text-only reader", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            new_ids = reader.generate_ids(
                *reader.pad([prompts[index] for index in indices]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            for index, ids in zip(indices, new_ids.tolist(), strict=True):
                said = str(reader.tokenizer.decode(ids, skip_special_tokens=True)).strip()
                answers[index] = said if chat else said.partition("\n")[0].strip()
            bar.update(len(indices))
    return [
        Hardness(
            dataclasses.replace(item, reader=reader.name, reader_answer=answer)
            if isinstance(item, SplitItem)
            else item,
            answer,
            correct(answer, item.answer),
        )
        for item, answer in zip(items, answers, strict=True)
    ]


def _shown(item: SplitItem | Example, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if isinstance(item, SplitItem):
        return item.prefix_text
    if tokenizer is None:
        raise DataError(
            "Examples hold token ids, not words. Give the tokenizer that made them as "
            "context_tokenizer."
        )
    return str(tokenizer.decode(list(item.context_ids), skip_special_tokens=True))


def _reader_ids(tokenizer: PreTrainedTokenizerBase, prefix: str, question: str) -> tuple[int, ...]:
    prompt = READER_PROMPT.format(prefix=prefix, question=question)
    if not tokenizer.chat_template:
        return tuple(tokenizer(prompt + BASE_MODEL_ENDING, verbose=False)["input_ids"])  # type: ignore[arg-type]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # templates that know no thinking ignore it
    )
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def read_split_qa(path: str | os.PathLike[str]) -> list[SplitItem]:
    """Read items from a .jsonl file, one prefix with its questions a line.

    Each line is an object with `prefix` (a text, or a list of messages with `role` and
    `content`), `qa` (a list of [question, answer]), and, where wanted, `group`. Lines of
    `write_split_qa` have `reader` and a third part of each question, `reader_answer`, as well.

    Raises:
        DataError: no such file, or a line in another form.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    items: list[SplitItem] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    items += _line_items(json.loads(line), f"{file.name}, line {number}")
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file.name} is not JSON lines in UTF-8: {error}.") from error
    if not items:
        raise DataError(f"{file.name} has no line with a question.")
    return items


def write_split_qa(path: str | os.PathLike[str], items: Sequence[SplitItem]) -> None:
    """Write items, such as those that `text_hardness` found hard, for `read_split_qa`.

    The file is there whole or not at all.
    """
    file = Path(path)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for item in items:
            line = {
                "prefix": item.prefix,
                "qa": [[item.question, item.answer, item.reader_answer]],
                "group": item.group,
                "reader": item.reader,
            }
            out.write(json.dumps(line, ensure_ascii=True) + "\n")


def _line_items(entry: Any, where: str) -> Iterator[SplitItem]:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {str(entry)[:80]!r}; expected an object.")
    prefix, qa = entry.get("prefix"), entry.get("qa")
    if isinstance(prefix, list):
        for message in prefix:
            if not (
                isinstance(message, dict)
                and is_text(message.get("role"))
                and is_text(message.get("content"))
            ):
                raise DataError(
                    f"{where}: the message {str(message)[:80]} needs the texts 'role' and "
                    "'content'."
                )
        messages: Any = tuple({"role": m["role"], "content": m["content"]} for m in prefix)
    else:
        messages = prefix
    if not (messages if isinstance(messages, tuple) else is_text(messages)):
        raise DataError(
            f"{where}: 'prefix' is {str(prefix)[:80]!r}; expected a text or a list of messages."
        )
    if not isinstance(qa, list) or not qa:
        raise DataError(f"{where}: 'qa' is {str(qa)[:80]!r}; expected [[question, answer], ...].")
    names = {name: entry.get(name, "") for name in ("group", "reader")}
    for name, value in names.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {name!r} is {value!r}; expected text.")
    for pair in qa:
        if not (
            isinstance(pair, list)
            and len(pair) in (2, 3)
            and all(isinstance(part, str) for part in pair)
            and all(map(is_text, pair[:2]))
        ):
            raise DataError(f"{where}: {str(pair)[:80]} is not [question, answer], two texts.")
        yield SplitItem(
            prefix=messages,
            question=pair[0],
            answer=pair[1],
            reader_answer=pair[2] if len(pair) == 3 else "",
            **names,
        )


@dataclass(frozen=True, kw_only=True)
class SplitQA:
    """Questions about what comes after the text that is read; a `Source`.

    Attributes:
        name: unique in a mixture.
        items: the questions; those of one prefix share a forward pass where they stand together.
        tokenizer: the target model's. A dialogue is rendered by its chat template, with the
            header of a reply where it does not end with one.
        layers: which layers an example reads.
        window: the positions read where not all are.
        full_share: share of the examples in which all positions are read, in expectation.

    Raises:
        DataError: no item, or `full_share` is not between 0 and 1.
    """

    name: str
    items: Sequence[SplitItem]
    tokenizer: PreTrainedTokenizerBase
    layers: LayerChoice
    window: Window = FEW_TOKENS
    full_share: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.name, self.full_share)
        if not self.items:
            raise DataError(
                f"{self.name!r} has no question. Where text_hardness found none hard, the reader "
                "answers all of them from the words: give other questions, or a smaller reader."
            )

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """For each prefix the examples with its questions."""
        by_prefix: dict[str, list[SplitItem]] = {}
        for item in self.items:
            by_prefix.setdefault(json.dumps(item.prefix), []).append(item)
        groups = list(by_prefix.values())
        order = list(range(len(groups)))
        random.Random(f"{seed}/{self.name}/order").shuffle(order)
        for index in order:
            yield self._examples(groups[index], group_rng(seed, self.name, index))

    def _examples(self, items: Sequence[SplitItem], rng: random.Random) -> list[Example]:
        prefix = items[0].prefix
        replied = not isinstance(prefix, str) and prefix[-1]["role"] == "assistant"
        context = encode_context(self.tokenizer, prefix, add_generation_prompt=not replied)
        readable = range(context.first_readable, len(context))
        examples = []
        for item in items:
            full = rng.random() < self.full_share
            window = self.window.draw(rng, readable.start, readable.stop)
            examples += [
                Example(
                    context_ids=context.token_ids,
                    positions=tuple(readable if full else window),
                    layers=layers,
                    question=item.question,
                    answer=item.answer,
                    source=self.name,
                    group=item.group,
                    other_groups=(text_group(item.prefix),),
                )
                for layers in self.layers.draw(rng)
            ]
        return examples

    def describe(self) -> dict[str, object]:
        """The items, which readers they were put to, and the settings."""
        digest = hashlib.sha256()
        for item in self.items:
            line = [item.prefix, item.question, item.answer, item.group]
            digest.update(json.dumps(line).encode() + b"\n")
        readers: Mapping[str, int] = Counter(item.reader for item in self.items)
        return {
            "kind": "split_qa",
            "name": self.name,
            "digest": digest.hexdigest(),
            "questions": len(self.items),
            # A reader's name may be a path of this machine, of which the folder says enough.
            "readers": {Path(name).name or "none": n for name, n in sorted(readers.items())},
            "layers": asdict(self.layers),
            "window": asdict(self.window),
            "full_share": self.full_share,
        }
