"""What panels say of whose activations an answer is about, and whether these support it."""

import pytest

from aotoolkit.oracle import Answer
from aotoolkit.widgets.answer_view import read_name, verdict_text

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


@pytest.mark.parametrize(
    ("controls", "sampled", "says"),
    [
        ({"base": "The oak.", "shuffled": "The yoyo."}, False, "✓ No control without the evidence"),
        ({"base": "the yoyo"}, False, "✗ Not supported by the activations"),
        ({"base": "the yoyo"}, True, "✗ Not supported by the activations"),
        ({"base": "The oak."}, True, "? Support not known: the answer was drawn"),
        ({"shuffled": "The yoyo."}, False, "? Support not known: no control that takes"),
        ({}, False, "? Support not known: no control that takes"),
    ],
)
def test_the_verdict_says_what_the_controls_show(controls, sampled, says):
    answer = Answer(
        question="What is it?",
        text="The yoyo.",
        controls=controls,
        log_prob=-1.0,
        num_tokens=2,
        layers=(2,),
        positions=(1,),
        tokens=("yoyo",),
        provenance={},
        sampled=sampled,
    )
    assert verdict_text(answer).startswith(says)
