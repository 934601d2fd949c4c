"""Context prediction: which tokens came before the vectors, or come after them?

The self-supervised part of the Activation Oracles mixture (Karvonen et al. 2025, arXiv 2512.15674,
"past lens"): it needs no labels, so any text makes examples. From each text a window of K
contiguous positions is read, and the J tokens on one side of it are the answer.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from aotoolkit.data.example import Example
from aotoolkit.data.source import LayerChoice, group_rng, text_group
from aotoolkit.data.texts import TextSpec, describe_texts, naming_row, read_texts, text_ids
from aotoolkit.errors import DataError
from aotoolkit.tracing.digest import tokenizer_digest

Direction = Literal["past", "future"]

PAST_QUESTION = "Can you predict the previous {count} tokens that came before this?"
FUTURE_QUESTION = "Can you predict the next {count} tokens that come after this?"


@dataclass(frozen=True, kw_only=True)
class ContextPrediction:
    """Examples of context prediction from texts; a `Source`.

    The defaults are the paper's recipe: of each text two windows, one of a single vector and one
    of 1 to 50, each asked at every layer. The paper reads 50,000 texts of FineWeb and as many of
    LMSYS-Chat-1M: two of these in a mixture.

    As in the paper, sizes are drawn before the text is looked at, a window that does not fit is
    left out, the vector at the first token is never read for the future, and the text goes on
    after a window whose past is asked for.

    Attributes:
        name: unique in a mixture.
        texts: what is read. Plain texts get the tokenizer's special tokens, chats its template.
        tokenizer: the target model's.
        layers: which layers an example reads.
        num_tokens: least and most tokens to predict, J.
        num_positions: least and most contiguous positions read, K: one window of each text for
            each pair.
        directions: sides of the window that are asked for, equally often.
        max_length: tokens of a text that are used.
        past_question: wording, with {count} for J.
        future_question: likewise.
    """

    name: str
    texts: TextSpec
    tokenizer: PreTrainedTokenizerBase
    layers: LayerChoice
    num_tokens: tuple[int, int] = (1, 50)
    num_positions: tuple[tuple[int, int], ...] = ((1, 1), (1, 50))
    directions: tuple[Direction, ...] = ("past", "future")
    max_length: int = 512
    past_question: str = PAST_QUESTION
    future_question: str = FUTURE_QUESTION

    def __post_init__(self) -> None:
        for setting, ranges in (
            ("num_tokens", (self.num_tokens,)),
            ("num_positions", self.num_positions),
        ):
            if not ranges or any(not 1 <= low <= high for low, high in ranges):
                raise DataError(
                    f"{setting} of {self.name!r} is {getattr(self, setting)}; expected the least "
                    "and the most, each at least 1."
                )
        if not self.directions or set(self.directions) - set(get_args(Direction)):
            raise DataError(
                f"directions of {self.name!r} is {self.directions}; expected some of "
                f"{get_args(Direction)}."
            )
        for question in (self.past_question, self.future_question):
            if "{count}" not in question:
                raise DataError(
                    f"The question {question!r} of {self.name!r} does not say how many tokens to "
                    "predict. Put {count} where the number goes."
                )
        if self.max_length < self._shortest:
            raise DataError(
                f"max_length of {self.name!r} is {self.max_length}, but the smallest window and "
                f"its answer need {self._shortest} tokens. Raise it."
            )

    @property
    def _shortest(self) -> int:
        return self.num_tokens[0] + min(low for low, _ in self.num_positions) + 1

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """The examples of one text after another, lazily.

        Raises:
            DataError: the texts cannot be read, or none is long enough.
            ChatTemplateError: chats, and the tokenizer has no template.
        """
        longest, found = 0, False
        for record in read_texts(self.texts):
            with naming_row(self.texts, record):
                ids = text_ids(
                    self.tokenizer,
                    record.content,
                    max_length=self.max_length,
                    finished=record.finished,
                    chat_template_kwargs=record.chat_template_kwargs,
                )
            longest = max(longest, len(ids))
            rng = group_rng(seed, self.name, record.row)
            examples = self._examples(ids, rng, group=text_group(record.content))
            if examples:
                found = True
                yield examples
        if not found:
            raise DataError(
                f"No text of {str(self.texts.data)!r} is long enough for {self.name!r}: the "
                f"longest has {longest} tokens, and at most {self.num_tokens[1]} tokens are to be "
                f"predicted from at most {max(high for _, high in self.num_positions)} positions. "
                "Give longer texts, or lower num_tokens and num_positions."
            )

    def describe(self) -> dict[str, object]:
        """Settings and the digest of the texts, for the manifest."""
        return {
            "kind": "context_prediction",
            "name": self.name,
            "texts": describe_texts(self.texts),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "layers": asdict(self.layers),
            "num_tokens": self.num_tokens,
            "num_positions": self.num_positions,
            "directions": self.directions,
            "max_length": self.max_length,
            "past_question": self.past_question,
            "future_question": self.future_question,
        }

    def _examples(self, ids: tuple[int, ...], rng: random.Random, *, group: str) -> list[Example]:
        drawn: list[tuple[range, str, str, tuple[int, ...]]] = []
        for least, most in self.num_positions:
            num_tokens, num_positions = rng.randint(*self.num_tokens), rng.randint(least, most)
            past = rng.choice(self.directions) == "past"
            spare = len(ids) - num_tokens - num_positions - 1
            if spare < 0:
                continue
            if past:
                start = num_tokens + rng.randint(0, spare)
                target = ids[start - num_tokens : start]
                question = self.past_question
            else:
                start = 1 + rng.randint(0, spare)
                end = start + num_positions
                target = ids[end : end + num_tokens]
                question = self.future_question
            answer = self.tokenizer.decode(
                list(target), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            assert isinstance(answer, str)
            if not answer.strip():
                continue  # only control tokens or blanks: nothing to say
            positions = range(start, start + num_positions)
            drawn += [
                (positions, question.replace("{count}", str(num_tokens)), answer, layers)
                for layers in self.layers.draw(rng)
            ]
        # Nothing after the last position can reach it, so all windows share the longest context.
        end = max((positions[-1] + 1 for positions, *_ in drawn), default=0)
        return [
            Example(
                context_ids=ids[:end],
                positions=tuple(positions),
                layers=layers,
                question=question,
                answer=answer,
                source=self.name,
                group=group,
            )
            for positions, question, answer, layers in drawn
        ]
