"""Controls take away what they say, and an answer that they share is marked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import QuestionError
from aotoolkit.oracle.answer import Answer, AnswerGrid, Choice
from aotoolkit.oracle.controls import (
    CONTROLS,
    normalise,
    random_vectors,
    resolve_controls,
    shuffled_vectors,
    unsupported_by,
)


def test_random_vectors_keep_norms_and_lose_directions():
    vectors = torch.randn(2, 5, 256) * 9
    drawn = random_vectors(vectors, seed=3)
    torch.testing.assert_close(drawn.norm(dim=-1), vectors.norm(dim=-1))
    assert torch.cosine_similarity(drawn, vectors, dim=-1).abs().max() < 0.4
    assert torch.equal(drawn, random_vectors(vectors, seed=3))
    assert not torch.equal(drawn, random_vectors(vectors, seed=4))


@given(positions=st.integers(2, 20), seed=st.integers(0, 1000))
def test_shuffled_vectors_are_the_same_vectors_elsewhere(positions, seed):
    vectors = torch.arange(2.0 * positions).reshape(2, positions, 1)
    shuffled = shuffled_vectors(vectors, seed=seed)
    assert torch.equal(shuffled.sort(dim=1).values, vectors)
    assert not (shuffled == vectors).any(), "a vector stayed where it was"


def test_names():
    assert resolve_controls(True) == CONTROLS
    assert resolve_controls(False) == ()
    assert resolve_controls(["zero"]) == ("zero",)
    for wrong in ("zero", ["nothing"]):
        with pytest.raises(QuestionError, match="no_activation"):
            resolve_controls(wrong)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Bread", "bread.", True),
        ("The bread", " a  BREAD!", True),
        ("the", "a", False),
        ("bread", "breads", False),
        ("", "!", True),
        ("\u201cThe lion.\u201d", "The lion", True),
        ("It is\u2026 red", "it is red", True),
    ],
)
def test_answers_are_compared_without_case_punctuation_and_articles(left, right, same):
    assert (normalise(left) == normalise(right)) == same


def test_shuffling_keeps_the_evidence_so_it_does_not_decide():
    controls = {"zero": "milk", "shuffled": "bread", "base": "Bread."}
    assert unsupported_by("bread", controls) == ("base",)
    assert unsupported_by("bread", {"shuffled": "bread"}) == ()


def test_candidates_are_compared_as_they_are():
    """They were told apart by the caller, so signs count."""

    def choice(picked, controls=None):
        chances = {"+1": 0.4, "-1": 0.4} | {picked: 0.6}
        return Choice(
            question="?", log_probs=chances, probabilities=chances, controls=controls or {}
        )

    assert choice("+1", {"base": choice("-1")}).supported is True
    assert choice("+1", {"base": choice("+1")}).unsupported_by == ("base",)
    assert choice("+1", {"shuffled": choice("+1")}).supported is None


def answer(text="bread", controls=None, **changes):
    fields = {
        "question": "What?",
        "text": text,
        "controls": {} if controls is None else controls,
        "log_prob": -2.0,
        "num_tokens": 4,
        "layers": (4,),
        "positions": (7,),
        "tokens": ("a",),
        "provenance": {},
    }
    return Answer(**(fields | changes))


def test_an_answer_says_whether_it_is_supported():
    assert answer().supported is None, "nothing was compared"
    assert answer(controls={"zero": "milk"}).supported is True
    guessed = answer(controls={"zero": "Bread", "random": "milk"})
    assert guessed.supported is False
    assert guessed.unsupported_by == ("zero",)
    assert "not supported" in str(guessed)
    assert str(answer()) == "bread"
    assert guessed.mean_log_prob == -0.5
    assert guessed.to_dict()["supported"] is False
    assert guessed.to_dict()["layers"] == [4]


def test_what_was_not_tested_is_not_supported():
    shuffled = {"shuffled": "milk"}
    assert answer(controls=shuffled).supported is None
    choice = {"question": "What?", "log_probs": {"a": 0.0}, "probabilities": {"a": 1.0}}
    assert Choice(**choice, controls={"shuffled": Choice(**choice)}).supported is None
    assert Choice(**choice, controls={"zero": Choice(**choice)}).supported is False
    drawn = answer(controls={"zero": "milk"}, sampled=True)
    assert drawn.supported is None, "two draws differ anyway"
    assert answer(controls={"zero": "bread"}, sampled=True).supported is False
    assert drawn.to_dict()["sampled"] is True


EVIL = "<script>alert(1)</script>"


def test_a_grid_with_one_token_twice_is_complete():
    grid = AnswerGrid(
        question="What?",
        layers=(4,),
        positions=(7, 7),
        tokens=("a", "a"),
        cells={(4, 7): answer()},
    )
    assert grid.complete
    assert "Cancelled" not in grid._repr_html_()
    assert grid.to_pandas().shape == (1, 2)


def test_text_is_escaped_in_html():
    shown = answer(EVIL, {"zero": EVIL}, question=EVIL)._repr_html_()
    grid = AnswerGrid(
        question=EVIL,
        layers=(4,),
        positions=(7,),
        tokens=(EVIL,),
        cells={(4, 7): answer(EVIL)},
    )
    choice = Choice(question=EVIL, log_probs={EVIL: 0.0}, probabilities={EVIL: 1.0})
    for page in (shown, grid._repr_html_(), choice._repr_html_()):
        assert "<script>" not in page
        assert "&lt;script&gt;" in page


def test_a_grid_shows_what_is_done():
    grid = AnswerGrid(
        question="What?",
        layers=(2, 4),
        positions=(7, 9),
        tokens=("a", "b"),
        cells={(2, 7): answer(controls={"zero": "bread"}), (4, 7): answer("two\nlines")},
    )
    assert not grid.complete
    assert "bread*" in grid.text
    assert "two lines" in grid.text
    assert len(grid.text.splitlines()) == 3
    table = grid.to_pandas()
    assert table.shape == (2, 2)
    assert table.loc[2, (7, "a")] == "bread"
    assert table.loc[4, (9, "b")] is None
    assert grid.to_pandas("supported").loc[2, (7, "a")] is False
    assert grid[4, 7].text == "two\nlines"
    with pytest.raises(LookupError, match="cancelled"):
        grid[4, 9]
    assert len(grid.to_dict()["cells"]) == 2
