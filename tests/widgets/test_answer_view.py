"""What panels say of whose activations an answer is about."""

import pytest

from aotoolkit.widgets.answer_view import read_name

PLAIN = {"adapter": "boat", "subtracted": None}
BASE = {"adapter": None}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "boat"),
        ({"adapter": None}, "base model"),
        ({"subtracted": BASE}, "boat minus base model"),
        (
            {"amplified_by": 1.5, "amplified_from": BASE},
            "boat, its difference to base model taken 1.5 times",
        ),
        (
            {"common_share": 0.5, "common_to": [{"adapter": "grape"}, {"adapter": "pie"}, BASE]},
            "boat, less 0.5 of what 2 siblings have in common",
        ),
    ],
)
def test_what_was_read_is_named_with_what_was_done_to_it(changed, name):
    assert read_name(PLAIN | changed) == name
