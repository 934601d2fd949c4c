"""Previews: the tokens that are read, and no control characters."""

import pytest
import tiny

from aotoolkit.data.example import Example
from aotoolkit.data.preview import TOKENS_AROUND, draw_examples, preview


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def example(ids, positions, **options) -> Example:
    values = {"layers": (2,), "question": "What?", "answer": "This.", "source": "s"} | options
    return Example(context_ids=tuple(ids), positions=tuple(positions), **values)


def test_what_is_read_is_between_the_marks(tokenizer):
    ids = tokenizer("The secret word is water, and it is blue.")["input_ids"]
    text = preview(example(ids, (2, 3, 6)), tokenizer).plain
    first, second = tokenizer.decode(ids[2:4]), tokenizer.decode(ids[6:7])
    assert f"⟦{first}⟧" in text
    assert f"⟦{second}⟧" in text
    assert text.count("⟦") == 2
    assert text.replace("⟦", "").replace("⟧", "").splitlines()[1] == tokenizer.decode(ids)


def test_a_long_context_is_cut_around_what_is_read(tokenizer):
    text = preview(example([50] * 1000, [500]), tokenizer).plain
    assert f"[... {500 - TOKENS_AROUND:,} tokens ...]" in text
    assert text.count(tokenizer.decode([50])) <= 2 * TOKENS_AROUND + 10


def test_it_says_when_vectors_are_made(tokenizer):
    text = preview(example([50] * 5, [1], evidence="zero", choices=()), tokenizer).plain
    assert "zero vectors" in text


def test_data_cannot_drive_the_terminal(tokenizer):
    ids = tokenizer("\x1b[2Jwater")["input_ids"]
    text = preview(example(ids, [0], question="a\x1b[31m?", answer="\x07"), tokenizer).plain
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[31m" in text


def test_one_example_of_each_context():
    class Source:
        name = "s"

        def groups(self, seed):
            for number in range(3):
                yield [example([seed, number], [0], question=str(k)) for k in range(2)]
                yield []

        def describe(self):
            return {}

    drawn = draw_examples(Source(), 5, seed=7)
    assert [e.context_ids for e in drawn] == [(7, 0), (7, 1), (7, 2)]
