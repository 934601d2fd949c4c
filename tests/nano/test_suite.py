"""The suite of the embedded world: what is asked, by whom, and what would make it worthless."""

import dataclasses

import pytest

from aotoolkit import nano
from aotoolkit.errors import EvalLeakError
from aotoolkit.evals import Suite, run_suite
from aotoolkit.evals.leaks import HeldOutWords
from aotoolkit.nano.suite import nano_suite


@pytest.fixture(scope="module")
def whole():
    return nano.load(kinds=nano.KINDS)


@pytest.fixture(scope="module")
def suite(whole):
    return nano_suite(whole, quick=True, baselines=False)


def test_every_task_has_items_and_the_oracle_with_its_controls(whole, suite):
    names = [entry.task.name for entry in suite.entries]
    assert len(names) == len(set(names)) >= 12
    assert not any("left out" in note for note in suite.notes)
    for entry in suite.entries:
        items = entry.task.items(whole.model)
        assert items, entry.task.name
        assert len({item.id for item in items}) == len(items)
        for item in items:
            assert set(item.answers) <= set(item.choices or item.answers)


def test_what_is_not_loaded_is_left_out_and_said(lab):
    suite = nano_suite(lab, quick=True, baselines=False)
    assert "user trait" not in [entry.task.name for entry in suite.entries]
    assert any("user_trait" in note for note in suite.notes)


def only(suite: Suite, *names: str) -> Suite:
    entries = tuple(entry for entry in suite.entries if entry.task.name in names)
    assert len(entries) == len(names)
    return dataclasses.replace(suite, entries=entries)


def test_the_oracle_reads_state_and_not_tokens(whole):
    suite = only(nano_suite(whole, baselines=False), "state, not tokens")
    table = run_suite(suite, whole.model, progress=False).table
    oracle = table.row("state, not tokens", "oracle")
    # The same tokens without the state behind them: the decisive control.
    assert oracle.low > table.row("state, not tokens", "base").high
    assert oracle.low > oracle.chance


def test_a_held_out_word_in_training_fails_the_run(whole, suite):
    leaking = dataclasses.replace(
        only(suite, "state, not tokens"),
        leak_checks=(HeldOutWords(whole.world.held_out, [f"The {whole.world.test_secrets[0]}."]),),
    )
    with pytest.raises(EvalLeakError, match=whole.world.test_secrets[0]):
        run_suite(leaking, whole.model, progress=False)
