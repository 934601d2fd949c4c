"""The suites of the embedded world: what is asked, by whom, and what would make it worthless."""

import dataclasses
import random

import pytest

from aotoolkit import nano
from aotoolkit.errors import EvalLeakError
from aotoolkit.evals import ArmAnswer, Suite, run_suite
from aotoolkit.evals.leaks import HeldOutWords
from aotoolkit.nano.corpus import FACT_ATTRIBUTES
from aotoolkit.nano.demo import taboo_items
from aotoolkit.nano.suite import nano_latentqa_suite, nano_suite


@pytest.fixture(scope="module")
def whole():
    return nano.load(kinds=nano.KINDS)


@pytest.fixture(scope="module")
def suite(whole):
    return nano_suite(whole, quick=True, baselines=False)


def test_every_task_has_items(whole, suite):
    names = [entry.task.name for entry in suite.entries]
    assert len(names) == len(set(names)) >= 12
    assert not any("left out" in note for note in suite.notes)
    for entry in suite.entries:
        items = entry.task.items(whole.model)
        assert items, entry.task.name
        assert len({item.id for item in items}) == len(items)
        for item in items:
            assert set(item.answers) <= set(item.choices or item.answers)


def test_skylines_can_read_every_task_in_batches_of_their_own(suite):
    for entry in suite.entries:
        copy = dataclasses.replace(entry.task, batch_size=128)
        assert [spec.question for spec in copy.specs()] == [
            spec.question for spec in entry.task.specs()
        ]


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


FORMS = ("hidden system prompt, easy", "hidden system prompt, hard")


@pytest.fixture(scope="module")
def latentqa(lab):
    suite = nano_latentqa_suite(lab, baselines=False)
    return {entry.task.name: (entry.task, entry.task.items(lab.model)) for entry in suite.entries}


def test_latentqa_asks_for_hidden_prompts_and_relations(latentqa):
    assert tuple(latentqa)[:2] == FORMS
    assert set(latentqa) - set(FORMS) == {f"relation, {name}" for name in FACT_ATTRIBUTES}


def said(item):
    """What the later turns say, without the system turn."""
    return tuple(turn["content"] for turn in item.chat[1:])


def test_both_forms_read_the_same_dialogues(latentqa):
    easy, hard = ({(item.unit, said(item)) for item in latentqa[name][1]} for name in FORMS)
    assert easy <= hard
    assert len(easy) >= 0.8 * len(hard)


def facts(lab, item):
    """The values that the hint of an item names."""
    hint = said(item)[-1].lower()
    values = {lab.world[noun].value(name) for noun in lab.world.nouns for name in FACT_ATTRIBUTES}
    return {value for value in values if value in hint.replace(".", "").split()}


def fits(lab, item):
    """The candidates of which the hint is true."""
    told = facts(lab, item)
    return [
        noun
        for noun in item.choices
        if told <= {lab.world[noun].value(name) for name in FACT_ATTRIBUTES}
    ]


def test_a_hint_fits_one_candidate_in_the_easy_form_and_all_in_the_hard(lab, latentqa):
    for item in latentqa[FORMS[0]][1]:
        assert fits(lab, item) == [item.unit]
    for item in latentqa[FORMS[1]][1]:
        assert fits(lab, item) == list(item.choices)


def by_text(lab, item):
    """A reader of the text that knows the world, and draws where the text does not decide."""
    return random.Random(f"{said(item)}{item.choices}").choice(fits(lab, item))


def mean(task, items, say):
    units = {}
    for item in items:
        answer = ArmAnswer(
            item=item.id,
            arm="guesser",
            text=say(item),
            scores={choice: float(choice == say(item)) for choice in item.choices},
        )
        units.setdefault(item.unit, []).append(task.score(item, answer))
    return sum(sum(own) / len(own) for own in units.values()) / len(units)


def test_who_reads_nothing_is_at_chance_and_who_is_told_is_right(lab, latentqa):
    for name in FORMS:
        task, items = latentqa[name]
        assert mean(task, items, lambda item: item.answers[0]) == 1
        # One answer to each list of candidates is right for one of them.
        guessed = [
            mean(task, items, lambda item, n=n: item.choices[n % len(item.choices)])
            for n in range(12)
        ]
        assert sum(guessed) / len(guessed) == pytest.approx(task.chance(items))


def test_the_text_tells_the_easy_form_and_nothing_of_the_hard(lab, latentqa):
    easy, hard = (latentqa[name] for name in FORMS)
    assert mean(*easy, lambda item: by_text(lab, item)) == 1
    right = [item for item in hard[1] if by_text(lab, item) == item.unit]
    groups = {(item.choices, said(item)) for item in hard[1]}
    assert len(right) == len(groups)  # one of each, whoever it is


def test_relations_are_facts_of_the_world(lab, latentqa):
    for name in FACT_ATTRIBUTES:
        task, items = latentqa[f"relation, {name}"]
        for item in items:
            assert item.answers == (lab.world[item.unit].value(name),)
        assert mean(task, items, lambda item: item.answers[0]) == 1
        most = max(mean(task, items, lambda _, value=v: value) for v in items[0].choices)
        assert most == pytest.approx(task.chance(items))


def test_two_oracles_stand_in_one_table_with_a_paired_difference(lab):
    suite = nano_latentqa_suite(
        lab, oracles={"oracle": lab.oracle, "same": lab.oracle}, quick=True, baselines=False
    )
    made = only(suite, FORMS[1])
    made = dataclasses.replace(made, leak_checks=())
    table = run_suite(made, lab.model, progress=False).table
    best, other = (row for row in table.main_rows(FORMS[1]) if row.kind == "oracle")
    assert best.mean == other.mean
    assert {best.difference, other.difference} != {None}
    assert not any("Of the oracles" in claim for claim in table.claims())


def test_layers_that_are_named_are_read(lab):
    suite = nano_latentqa_suite(lab, quick=True, baselines=False, layers=[0.5])
    assert {entry.task.layers for entry in suite.entries} == {(lab.model.num_layers // 2,)}


def test_taboo_organisms_are_read_where_the_demo_reads_them_or_where_one_says(lab):
    def read(suite, task):
        (found,) = [entry.task for entry in suite.entries if entry.task.name == task]
        return found.layers

    (demo,) = [
        [item.activations.positions for item in items]
        for condition, items in taboo_items(lab, layer=6, organisms=["bench"])
        if condition == "refusal"
    ]
    for name in ("taboo, refusal", "taboo, colour after a refusal"):
        (task,) = [e.task for e in nano_suite(lab, baselines=False).entries if e.task.name == name]
        read_of = [i.activations.positions for i in task.items(lab.model) if i.unit == "bench"]
        assert read_of == demo
    usual = nano_suite(lab, quick=True, baselines=False)
    assert read(usual, "taboo, refusal") == read(usual, "taboo, colour after a refusal") == (6,)
    assert read(usual, "state, not tokens") == lab.oracle.contract.recommended.layers
    named = nano_suite(lab, quick=True, baselines=False, layers=[0.5])
    assert read(named, "taboo, refusal") == read(named, "state, not tokens") == (4,)
