"""Examples refuse what cannot be read."""

import pytest

from aotoolkit.data import Example

FIELDS = {"question": "What?", "answer": "That.", "source": "test"}


def test_positions_must_lie_in_the_context():
    with pytest.raises(ValueError, match="outside the context of 3 tokens"):
        Example(context_ids=(1, 2, 3), positions=(3,), layers=(1,), **FIELDS)
    with pytest.raises(ValueError, match="outside"):
        Example(context_ids=(1, 2, 3), positions=(-1,), layers=(1,), **FIELDS)


def test_something_must_be_read():
    with pytest.raises(ValueError, match="at least one position"):
        Example(context_ids=(1,), positions=(), layers=(1,), **FIELDS)
    with pytest.raises(ValueError, match="layer"):
        Example(context_ids=(1,), positions=(0,), layers=(), **FIELDS)


def test_made_evidence_and_choices_are_checked():
    read = {"context_ids": (1, 2), "positions": (0,), "layers": (1,)}
    assert Example(**read, **FIELDS).evidence == "read"
    with pytest.raises(ValueError, match="'read', 'zero', 'random'"):
        Example(**read, **FIELDS, evidence="noise")
    with pytest.raises(ValueError, match=r"'That\.' is none of the choices"):
        Example(**read, **FIELDS, choices=("Yes", "No"))
