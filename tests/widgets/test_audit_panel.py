"""AuditPanel, on the embedded models."""

import threading
from pathlib import Path

import pytest
import torch
from fakes import SOON
from peft import LoraConfig

from aotoolkit.errors import EvalError, LayerError, UnknownAdapterError
from aotoolkit.tracing import ActivationDifference, activation_difference
from aotoolkit.widgets import AuditPanel
from aotoolkit.widgets.audit_panel import difference_grid
from aotoolkit.widgets.layer_token_grid import MAX_CELLS

HOSTILE = "</textarea><script>alert(1)</script>"


@pytest.fixture(scope="module")
def organism(lab) -> str:
    return next(iter(lab.organisms))


@pytest.fixture
def panel(lab, organism):
    made = AuditPanel(
        lab.model,
        [organism],
        oracle=lab.oracle,
        prompts=["Give me a hint.", "Hello."],
        questions=["What is the secret word?", "What kind of thing is the secret?"],
        max_new_tokens=8,
    )
    yield made
    made.close()
    assert made.wait(60)


def done(panel: AuditPanel) -> AuditPanel:
    assert panel.wait(60), "the panel hangs"
    return panel


@pytest.fixture
def compared(panel):
    panel.compare_button.click()
    done(panel)
    assert panel.error == ""
    return panel


def test_both_models_reply_side_by_side(compared, lab, organism):
    assert [one.text for one in compared.comparisons] == ["Give me a hint.", "Hello."]
    for one in compared.comparisons:
        assert one.reply == lab.model.generate(one.prompt, adapter=organism, max_new_tokens=8)
        assert one.base_reply == lab.model.generate(one.prompt, max_new_tokens=8)
        assert one.reply in compared._outputs.value
    assert "2 prompts compared" in compared.status.value
    assert compared.progress.layout.display == "none"


def test_a_grid_shows_where_they_part(compared):
    first = compared.comparisons[0]
    grid = compared.grid
    assert tuple(grid.layers) == first.acts.layers == compared.layers
    assert grid.tokens == list(first.acts.tokens)
    expected = first.difference.relative_norm
    assert grid.texts[1][3] == f"{float(expected[1, 3]):.3g}"
    assert max(map(max, grid.values)) == 1.0
    compared.measure.value = "1 - cosine"
    assert compared.grid.texts[1][3] == f"{float(1 - first.difference.cosine[1, 3]):.3g}"
    compared.chosen.value = 1
    assert compared.grid.tokens == list(compared.comparisons[1].acts.tokens)


def test_the_oracle_is_asked_about_both_and_the_difference(compared, lab):
    compared.question.value = "What is the secret word?"
    compared.ask_button.click()
    done(compared)
    assert compared.error == ""
    one, layers = compared.comparisons[0], compared.layer.value
    acts, base = (read.layer(layers)[1:] for read in (one.acts, one.base_acts))
    for name, read in (("fine_tuned", acts), ("base", base), ("difference", acts - base)):
        answer = getattr(compared._asked, name)
        assert answer.text == lab.oracle.ask(answer.question, read, max_new_tokens=8).text
        assert answer.text in compared._answers.value
    assert compared._answers.value.count('class="aop-card"') == 3
    assert f"reads {compared.adapter.value} minus base model" in compared._answers.value


def test_a_battery_runs_over_all_prompts_and_its_code_gives_the_same(compared):
    compared.battery_button.click()
    done(compared)
    assert compared.error == ""
    assert compared.battery.complete
    assert len(compared.battery.rows) == 4
    names = {"model": compared.model, "oracle": compared.oracle}
    exec(compile(compared.code(), "copied from the panel", "exec"), names)
    assert names["battery"] == compared.battery


def test_a_stopped_battery_keeps_what_is_done(compared):
    first = threading.Event()

    def stop_at_first(change):
        if change.new == 1:
            first.set()
            compared.stop()

    compared.progress.observe(stop_at_first, names="value")
    compared.run_battery()
    assert first.wait(SOON * 6)
    done(compared)
    assert len(compared.battery.rows) == 2, "a prompt's questions are one batch"
    assert "Stopped after 2 of 4" in compared.status.value
    assert compared._table.value.count("<tr>") == 3


def test_findings_are_pinned_to_a_report(compared, tmp_path: Path):
    compared.note.value = f"Look {HOSTILE}"
    compared.pin_button.click()
    compared.tabs.selected_index = 1
    compared.pin("They part at the reply.")
    compared.ask()
    done(compared)
    compared.pin()
    assert [f.title for f in compared.findings] == [
        f"What {compared.adapter.value} and the base say",
        "Where they part in the reply to “Give me a hint.”",
        compared.question.value,
    ]
    compared.run_battery()
    done(compared)
    page = compared.save_html(tmp_path / "report.html").read_text()
    for text in ("Findings", "They part at the reply.", "Outputs", "Battery", "ask_battery("):
        assert text in page
    assert "<script>alert" not in page
    assert "https://" not in page
    assert "<script" not in compared.snapshot().data


def test_nothing_to_pin_or_ask_is_said(panel):
    with pytest.raises(EvalError, match="nothing to pin"):
        panel.pin()
    panel.pin_button.click()
    assert panel.error.startswith("EvalError: There is nothing to pin")
    panel.ask()
    assert panel.error.startswith("EvalError: There is nothing to ask about")
    panel.run_battery()
    assert panel.error.startswith("EvalError: There is nothing to ask about")
    panel.prompts.value = " \n "
    panel.compare()
    assert panel.error.startswith("EvalError: There are no prompts")
    assert not panel.busy


def test_a_prompt_of_several_lines_is_one_prompt(lab, organism):
    prompts = ["Two\nlines.", " Hello. ", [{"role": "user", "content": "One."}]]
    questions = ["What is\nit?", "Who?"]
    panel = AuditPanel(
        lab.model, [organism], oracle=lab.oracle, prompts=prompts, questions=questions, system="S."
    )
    given = [messages[-1]["content"] for messages in panel._prompts()]
    assert given == ["Two\nlines.", " Hello. ", "One."]
    assert {messages[0]["content"] for messages in panel._prompts()} == {"S."}
    assert repr(questions[0]) in panel.code()
    panel.prompts.value = "[{"
    panel.compare()
    assert panel.error.startswith("PromptError: Line 1 of the prompts")
    assert panel.code().startswith("# Line 1 of the prompts")
    panel.prompts.value, panel.questions.value = "Hello.", "[{"
    panel.run_battery()
    assert panel.error.startswith("QuestionError: Line 1 of the questions")
    panel.close()


def test_an_adapter_that_is_loaded_later_can_be_audited(lab, organism):
    panel, fixed = AuditPanel(lab.model), AuditPanel(lab.model, [organism])
    panel.adapter.value = list(lab.organisms)[1]
    lab.model.add_adapter("late", LoraConfig(r=1, target_modules=["q_proj"]))
    try:
        for one in (panel, fixed):
            one.refresh_adapters()
        assert panel.adapter.options[-1] == "late"
        assert panel.adapter.value == list(lab.organisms)[1]
        assert list(fixed.adapter.options) == [organism]
    finally:
        lab.model.delete_adapter("late")
    panel.refresh_adapters()
    assert "late" not in panel.adapter.options
    panel.close()
    fixed.close()


def test_an_adapter_chosen_later_does_not_rename_what_was_compared(lab):
    names = list(lab.organisms)[:2]
    panel = AuditPanel(lab.model, names, prompts=["Hello."], max_new_tokens=4)
    panel.compare()
    done(panel)
    panel.adapter.value = names[1]
    panel._show_outputs()
    assert f"{names[0]} says" in panel._outputs.value
    assert panel.comparisons[0].acts.adapter == names[0]
    panel.close()


def test_without_an_oracle_it_compares(lab, organism):
    panel = AuditPanel(lab.model, [organism], prompts=["Hello."], system=HOSTILE, max_new_tokens=4)
    panel.compare()
    done(panel)
    assert panel.error == ""
    assert panel.comparisons[0].prompt[0] == {"role": "system", "content": HOSTILE}
    assert "<script" not in panel.snapshot().data
    assert "ask_battery(" not in panel.code()
    panel.close()


def test_there_must_be_an_adapter(lab):
    with pytest.raises(UnknownAdapterError, match="'nobody'"):
        AuditPanel(lab.model, ["nobody"])
    with pytest.raises(UnknownAdapterError, match="There is no adapter to audit"):
        AuditPanel(lab.model, [])


def test_the_oracles_adapter_is_not_audited(lab):
    panel = AuditPanel(lab.model, oracle=lab.oracle)
    assert list(panel.adapter.options) == list(lab.organisms)
    panel.close()


def test_a_read_that_does_not_differ_has_a_grid_too(lab):
    acts = lab.model.activations("Hello.", layers=[2])
    grid = difference_grid(activation_difference(acts, acts))
    assert {value for row in grid.values for value in row} == {0.0}
    with pytest.raises(EvalError, match="relative norm, norm, 1 - cosine"):
        difference_grid(activation_difference(acts, acts), "angle")
    assert torch.isfinite(activation_difference(acts, acts).cosine).all()


def test_of_a_long_text_the_last_tokens_are_shown_and_said_to_be():
    layers, length = 12, 1000
    values = torch.rand(layers, length)
    long = ActivationDifference(
        layers=tuple(range(layers)),
        positions=tuple(range(length)),
        tokens=tuple(f"t{number}" for number in range(length)),
        norm=values,
        relative_norm=values,
        cosine=values,
    )
    grid = difference_grid(long, label="Parted")
    assert len(grid.tokens) == MAX_CELLS // layers
    assert grid.tokens[-1] == "t999"
    assert grid.positions[-1] == 999
    assert grid.label == f"Parted (its last {len(grid.tokens)} tokens)"
    assert grid.texts[0][-1] == f"{float(values[0, -1]):.3g}"


def test_the_code_follows_the_longest_reply(panel):
    panel.max_new_tokens.value = 3
    assert panel.code().count("max_new_tokens=3") == 2
    assert panel._code.value.count("max_new_tokens=3") == 2


def test_answers_say_which_prompt_and_question_they_are_about(compared):
    compared.chosen.value = 1
    compared.ask()
    done(compared)
    compared.chosen.value, compared.question.value = 0, "Something else?"
    finding = compared.pin()
    for shown in (compared._answers.value, finding.evidence, compared.static_html()):
        assert "on “Hello.” and its reply" in shown
        assert "What is the secret word?" in shown


def test_a_grid_without_script_says_what_is_measured(compared):
    compared.measure.value = "1 - cosine"
    assert "1 - cosine: " in compared.grid.static_html()


def test_a_battery_that_is_stopped_at_once_does_not_show_the_one_before(compared):
    compared.run_battery()
    done(compared)
    compared.questions.value = ""
    compared.run_battery()
    done(compared)
    assert compared.error.startswith("EvalError: ")
    assert (compared.battery, compared._table.value) == (None, "")


def test_layers_that_the_oracle_does_not_read_are_refused(lab, organism):
    with pytest.raises(LayerError, match="none of which the oracle was trained on"):
        AuditPanel(lab.model, [organism], oracle=lab.oracle, layers=[1])
    assert AuditPanel(lab.model, [organism], layers=[1]).layers == (1,)
    with pytest.raises(LayerError, match="twice"):
        AuditPanel(lab.model, [organism], layers=[1, 1])


def test_asking_without_an_oracle_says_how_to_give_one(lab, organism):
    panel = AuditPanel(lab.model, [organism])
    for action in (panel.ask, panel.run_battery):
        action()
        done(panel)
        assert panel.error == (
            "EvalError: There is no oracle to ask. Give one: AuditPanel(..., oracle=...)."
        )
    panel.close()


def test_an_unknown_adapter_is_told_from_those_there_are(lab, organism):
    with pytest.raises(
        UnknownAdapterError, match=rf"'nobody' to audit; the model has .*{organism}"
    ):
        AuditPanel(lab.model, ["nobody"])
