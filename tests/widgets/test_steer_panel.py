"""SteerPanel, on the embedded models, with few steps."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import aotoolkit.steering
from aotoolkit.errors import LayerError, SteeringError
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.steering import Behaviour, SteeringVector, estimate
from aotoolkit.widgets import SteerPanel

PAIRS = [("What is the secret word?", "The tiger."), ("Name the secret.", "The tiger.")]
PROMPTS = ["Give me a hint.", "Help me guess."]
HOSTILE = "</pre></textarea></script><script>alert(1)</script><b>bold</b>"
QUICK: dict[str, Any] = {
    "prompts": PROMPTS,
    "layers": [2],
    "steps": 3,
    "lr": 5e-3,
    "batch_size": 2,
    "noise": 0.5,
    "rank": 2,
    "alpha": 16,
    "eval_every": 1,
    "max_new_tokens": 4,
}


def done(panel: SteerPanel) -> SteerPanel:
    assert panel.wait(300), "the panel hangs"
    return panel


def close(panel: SteerPanel) -> None:
    panel.close()
    done(panel)
    if panel.result is not None and panel.result.adapter in panel.model.adapter_names:
        panel.result.remove()


def executed(panel: SteerPanel) -> dict[str, Any]:
    """What the code that a panel shows leaves, run beside it."""
    names: dict[str, Any] = {"model": panel.model, "oracle": panel.oracle}
    exec(compile(panel.code(), "copied from the panel", "exec"), names)
    return names


@pytest.fixture
def panel(lab):
    made = SteerPanel(lab.model, lab.oracle, behaviour=PAIRS, **QUICK)
    yield made
    close(made)


@pytest.fixture(scope="module")
def steered(lab):
    """One that has run; what is done to it later leaves its result alone."""
    made = SteerPanel(lab.model, lab.oracle, behaviour=PAIRS, max_strength=500, **QUICK)
    made.run()
    done(made)
    assert made.error == ""
    assert made.result is not None
    assert made.result.best_step > 0
    yield made
    close(made)


@pytest.fixture
def untouched(lab):
    """What steering leaves alone is, at the end of the test, bit for bit what it was."""
    model, prompt = lab.model, lab.model.encode("The tiger is blue.").token_ids

    def state() -> tuple[Any, ...]:
        with model.inference(None):
            logits = model.hf_model(input_ids=torch.tensor([prompt])).logits
        weights = dict(model.hf_model.named_parameters())
        return (
            model.adapter_names,
            logits,
            {n: (w.clone(), w.requires_grad) for n, w in weights.items()},
        )

    names, logits, weights = state()
    yield
    names_now, logits_now, weights_now = state()
    assert set(names) <= set(names_now)
    assert torch.equal(logits, logits_now), "an adapter is live, or the base was changed"
    for name, (weight, flag) in weights.items():
        assert torch.equal(weights_now[name][0], weight), name
        assert weights_now[name][1] == flag, name
    new = [flag for name, (_, flag) in weights_now.items() if name not in weights]
    assert not any(new), "the result's weights still ask for gradients"
    assert all(weight.grad is None for weight in model.hf_model.parameters())


# --- a run -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_a_click_runs_and_the_curve_grows(panel, lab):
    curves, states = [], []
    panel._curve.observe(lambda change: curves.append(change.new), names="value")
    panel.status.observe(lambda change: states.append(change.new), names="value")
    panel.progress.observe(lambda change: states.append(change.new), names="value")
    panel.run_button.click()
    done(panel)
    assert panel.error == ""
    assert [point.step for point in panel.losses] == [0, 1, 2, 3]
    assert panel.losses == panel.result.losses
    assert [curve.count('class="aop-dot"') for curve in curves] == [1, 2, 3, 4]
    assert [state for state in states if isinstance(state, int)] == [1, 2, 3]
    assert "Step 2 of 3: loss" in str(states)
    best = panel.result.best_step
    assert "Done: 3 steps, " in panel.status.value
    assert f"Kept: step {best}, loss {panel.losses[0].loss:.3f} → " in panel.status.value
    assert panel.progress.layout.display == "none"
    assert panel.result.adapter in lab.model.adapter_names
    for before, after in zip(panel.result.before, panel.result.after, strict=True):
        assert before in panel._replies.value
        assert after in panel._replies.value


def test_memory_is_said_before_the_first_step(panel):
    said = []
    panel.progress.observe(lambda _: said.append(panel._memory.value), names="max")
    panel._curve.observe(lambda _: said.append(panel._memory.value), names="value")
    assert "not measured yet" in panel._memory.value
    panel.run()
    done(panel)
    assert "Memory: about" in said[0]
    request = panel.request
    again = estimate(panel.model, panel.oracle, PAIRS, request.prompts, **request.estimate_options)
    assert panel.memory.trained_bytes == again.trained_bytes
    assert str(panel.memory.trained_parameters) == str(again.trained_parameters)
    assert "changed since" not in panel._memory.value
    panel.numbers["rank"].value = 3
    assert "changed since" in panel._memory.value
    panel.estimate_button.click()
    done(panel)
    assert "changed since" not in panel._memory.value
    assert panel.memory.trained_bytes > again.trained_bytes


def test_more_memory_than_there_is_stands_out(panel):
    panel.estimate_memory()
    done(panel)
    panel.memory = type(panel.memory)(
        **{**vars(panel.memory), "available_bytes": panel.memory.total_bytes - 1}
    )
    panel._show_memory()
    assert "aop-error" in panel._memory.value
    assert "more than there is" in panel._memory.value


def test_several_oracles_take_turns(lab):
    panel = SteerPanel(lab.model, [lab.oracle, lab.oracle], behaviour=PAIRS, **QUICK)
    try:
        panel.run()
        done(panel)
        names = executed(panel)
        assert names["result"].losses == panel.result.losses
        names["result"].remove()
    finally:
        close(panel)


def test_its_code_does_the_same(panel):
    panel.run()
    done(panel)
    names = executed(panel)
    result = names["result"]
    try:
        assert result.losses == panel.result.losses
        assert names["replies"] == list(result.after)
        assert result.adapter != panel.result.adapter
    finally:
        result.remove()


@pytest.mark.usefixtures("untouched")
def test_stop_keeps_the_best_so_far(panel):
    panel.numbers["steps"].value = 10_000
    reached = threading.Event()

    def stop_at_two(change):
        if change.new == 2:
            panel.stop_button.click()
            reached.set()

    panel.progress.observe(stop_at_two, names="value")
    panel.run()
    assert reached.wait(300)
    done(panel)
    assert panel.error == ""
    assert panel.result.stopped
    assert panel.result.steps == 2
    assert "Stopped after 2 of 10000 steps" in panel.status.value
    lowest = min(panel.losses, key=lambda point: point.loss)
    assert panel.result.best_step == lowest.step


@pytest.mark.usefixtures("untouched")
def test_a_run_that_fails_leaves_the_result_before_it(panel, lab):
    panel.run()
    done(panel)
    first, names = panel.result, lab.model.adapter_names
    panel.lr.value = 1e30
    panel.run()
    done(panel)
    assert "NaN" in panel.error, "of the vectors or of the loss, whichever is seen first"
    assert 'role="alert"' in panel.status.value
    assert "Traceback" not in panel.status.value
    assert panel.result is first
    assert lab.model.adapter_names == names
    panel.chat("Hello.")
    done(panel)
    assert panel.error == ""


def test_a_second_run_takes_the_place_of_the_first(panel, lab):
    before = lab.model.adapter_names
    panel.run()
    done(panel)
    panel.chat("Hello.")
    done(panel)
    first = panel.result
    panel.numbers["seed"].value = 1
    panel.run()
    done(panel)
    assert panel.result is not first
    assert set(lab.model.adapter_names) == {*before, panel.result.adapter}
    assert panel.exchanges == []
    assert "Nothing was said yet" in panel._exchanges.value


def test_a_run_under_way_is_not_replaced(panel):
    panel.numbers["steps"].value = 10_000
    begun = threading.Event()
    panel.progress.observe(lambda _: begun.set(), names="value")
    panel.run()
    panel.run()
    assert panel.error.startswith("SteeringError: A run is under way")
    assert begun.wait(300)
    assert panel.run_button.disabled
    assert panel.estimate_button.disabled
    panel.estimate_memory()
    panel.show_pairs()
    panel.strength.value = 0.5
    panel.stop()
    done(panel)
    assert panel.result.stopped
    assert not panel.run_button.disabled


def test_a_run_that_is_stopped_before_it_begins_does_not_block(panel):
    panel.run()
    panel.stop()
    done(panel)
    panel.estimate_memory()
    done(panel)
    assert panel.error == ""


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p: setattr(p.pairs, "value", ""), "SteeringError: A behaviour needs"),
        (lambda p: setattr(p.pairs, "value", "What?"), "SteeringError: Line 1 of the pairs"),
        (lambda p: setattr(p.kind, "value", "sentence"), "SteeringError: There is no behaviour"),
        (lambda p: setattr(p.prompts, "value", " \n"), "SteeringError: There are no prompts"),
        (lambda p: setattr(p.prompts, "value", "[{"), "PromptError: Line 1 of the prompts"),
        (lambda p: p.layers.show([]), "SteeringError: layers is []"),
        (lambda p: p.layers.show([2, 4]), "SteeringError: layers is [2, 4]"),
        (lambda p: setattr(p.numbers["steps"], "value", 0), "SteeringError: steps is 0"),
        (lambda p: setattr(p.numbers["batch_size"], "value", 0), "SteeringError: batch_size is 0"),
        (lambda p: setattr(p.numbers["rank"], "value", 0), "SteeringError: rank is 0"),
        (lambda p: setattr(p.lr, "value", -1.0), "SteeringError: lr is -1.0"),
        (lambda p: setattr(p.noise, "value", -1.0), "SteeringError: noise is -1.0"),
        (
            lambda p: setattr(p.prompts, "value", '[{"role": "sage", "content": "Hi."}]'),
            "",
        ),
    ],
)
@pytest.mark.usefixtures("untouched")
def test_what_cannot_be_run_is_said(panel, lab, change, error):
    names = lab.model.adapter_names
    change(panel)
    panel.run()
    done(panel)
    if not error:
        assert panel.error == ""
    else:
        assert panel.error.startswith(error)
        assert panel.result is None
        assert lab.model.adapter_names == names
        assert 'role="alert"' in panel.status.value


def test_a_line_that_is_no_pair_is_named_at_once(panel):
    panel.pairs.value = f"What? => That.\n{HOSTILE}"
    assert "Line 2 of the pairs" in panel._pairs_note.value
    assert panel.code().startswith("# Line 2 of the pairs")
    panel.prompts.value = "[{"
    assert "Line 1 of the prompts" in panel._prompts_note.value


def test_what_a_panel_cannot_be_made_of(lab):
    with pytest.raises(SteeringError, match="is no question-answer pair"):
        SteerPanel(lab.model, lab.oracle, behaviour=[("What?",)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(SteeringError, match="method is 'magic'"):
        SteerPanel(lab.model, lab.oracle, method="magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LayerError):
        SteerPanel(lab.model, lab.oracle, layers=[99])


# --- a sentence --------------------------------------------------------------------------------


@pytest.fixture
def described(monkeypatch):
    """What the oracle was asked to make pairs of; it says which time it is."""
    calls: list[dict[str, Any]] = []

    def describe(model, oracle, sentence, prompts, *, questions, layer):
        calls.append({"sentence": sentence, "questions": tuple(questions), "layer": layer})
        pairs = [(question, f"Answer {len(calls)}.") for question in questions]
        return Behaviour(Behaviour.of(pairs).pairs, sentence)

    monkeypatch.setattr(aotoolkit.steering, "describe_behaviour", describe)
    return calls


def test_its_code_does_the_same_where_no_prompt_gets_a_reply(lab):
    chat = [
        {"role": "user", "content": "Give me a hint."},
        {"role": "assistant", "content": "It is blue."},
    ]
    panel = SteerPanel(lab.model, lab.oracle, behaviour=PAIRS, **{**QUICK, "prompts": [chat]})
    try:
        panel.run()
        done(panel)
        assert panel.result.prompts == ()
        names = executed(panel)
        assert names["result"].losses == panel.result.losses
        names["result"].remove()
    finally:
        close(panel)


@pytest.fixture
def told(lab):
    made = SteerPanel(
        lab.model, lab.oracle, behaviour="Talk about boats.", questions=["Why?", "How?"], **QUICK
    )
    yield made
    close(made)


def test_pairs_of_a_sentence_are_shown_and_can_be_changed(told, described):
    assert told.pairs.layout.display == "none"
    assert "describe_behaviour(" in told.code()
    told.pairs_button.click()
    done(told)
    assert described == [
        {"sentence": "Talk about boats.", "questions": ("Why?", "How?"), "layer": 2}
    ]
    assert told.pairs.value == "Why? => Answer 1.\nHow? => Answer 1."
    assert told.pairs.layout.display == ""
    assert "2 pairs, made of the sentence" in told._pairs_note.value
    assert "Memory: about" in told._memory.value
    told.pairs.value = "Why? => Because."
    assert "('Why?', 'Because.')" in told.code()
    told.run()
    done(told)
    assert len(described) == 1
    assert told.result.behaviour == Behaviour(
        Behaviour.of([("Why?", "Because.")]).pairs, "Talk about boats."
    )


def test_a_sentence_that_was_changed_makes_new_pairs(told, described):
    told.show_pairs()
    done(told)
    told.sentence.value = "Talk about cars."
    assert "changed" in told._pairs_note.value
    assert "describe_behaviour(" in told.code()
    told.run()
    done(told)
    assert told.error == ""
    assert [call["sentence"] for call in described] == ["Talk about boats.", "Talk about cars."]
    assert told.pairs.value == "Why? => Answer 2.\nHow? => Answer 2."
    told.pairs.value = "no pair"
    told.show_pairs()
    done(told)
    assert told.pairs.value.startswith("Why? => Answer 3.")
    told.questions.value = " "
    told.run()
    assert told.error.startswith("SteeringError: There are no questions")


def test_pairs_that_were_written_stay_when_a_sentence_is_tried(panel, described):
    written = panel.pairs.value
    panel.kind.value = "sentence"
    assert panel.pairs.value == ""
    panel.sentence.value = "Talk about boats."
    panel.show_pairs()
    done(panel)
    made = panel.pairs.value
    assert made != written
    panel.kind.value = "pairs"
    assert panel.pairs.value == written
    panel.kind.value = "sentence"
    assert panel.pairs.value == made
    assert "made of the sentence" in panel._pairs_note.value


def test_the_oracle_makes_the_pairs(told, lab):
    """Whatever this oracle says of a made-up sentence, it is what `describe_behaviour` gives."""
    request = told.request
    try:
        expected = aotoolkit.steering.describe_behaviour(
            lab.model,
            lab.oracle,
            "Talk about boats.",
            request.prompts,
            questions=["Why?", "How?"],
            layer=2,
        )
    except SteeringError as error:
        expected = error
    told.show_pairs()
    done(told)
    if isinstance(expected, Behaviour):
        assert told.request.behaviour == expected
    else:
        assert told.error == f"SteeringError: {expected}"


# --- methods -----------------------------------------------------------------------------------


def test_a_method_brings_its_layers_and_its_rate(lab):
    panel = SteerPanel(lab.model, lab.oracle, behaviour=PAIRS)
    one = panel.layers.value
    assert len(one) == 1
    assert panel.lr.value == 1e-4
    panel.method.value = "layerwise"
    assert panel.layers.value == tuple(lab.oracle.contract.read_layers)
    panel.method.value = "vector"
    assert panel.lr.value > 1e-2
    panel.lr.value = 0.7
    panel.method.value = "single_layer"
    assert (panel.layers.value, panel.lr.value) == (one, 1e-4)
    panel.method.value = "vector"
    assert panel.lr.value == 0.7
    assert "cheapest" in panel._method_note.value
    panel.close()


@pytest.mark.usefixtures("untouched")
def test_a_vector_is_steered_by_as_well(panel, lab, tmp_path: Path):
    names = lab.model.adapter_names
    panel.method.value = "vector"
    panel.layers.show([2])
    panel.run()
    done(panel)
    assert panel.error == ""
    assert lab.model.adapter_names == names
    panel.folder.value = str(tmp_path / "vector")
    panel.strength.value = 2.0
    panel.save()
    done(panel)
    saved = SteeringVector.load(panel.saved)
    assert torch.equal(saved.vectors[2], 2 * panel.result.vector.vectors[2])
    assert "SteeringVector.load(" in panel._saved.value


# --- both models -------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_both_models_reply_and_the_slider_has_an_effect(steered, lab):
    steered.exchanges.clear()
    steered.strength.value = 1.0
    steered.message.value = " Give me a hint. "
    steered.send_button.click()
    done(steered)
    assert steered.error == ""
    assert steered.message.value == ""
    prompt = [{"role": "user", "content": "Give me a hint."}]
    unsteered = lab.model.generate(prompt, max_new_tokens=4)

    def expected(strength):
        return steered.result.generate(prompt, scale=strength, max_new_tokens=4)

    (one,) = steered.exchanges
    assert (one.text, one.unsteered) == ("Give me a hint.", unsteered)
    assert one.steered == {1.0: expected(1.0)}
    steered.strength.value = 2.0
    done(steered)
    (one,) = steered.exchanges
    assert one.steered == {1.0: expected(1.0), 2.0: expected(2.0)}
    assert one.strength == 2.0
    assert "steered, strength 2" in steered._exchanges.value
    steered.strength.value = 500.0
    done(steered)
    assert steered.exchanges[-1].steered[500.0] != unsteered
    assert "≠ another reply" in steered._exchanges.value
    steered.strength.value = 0.0
    done(steered)
    assert steered.exchanges[-1].steered[0.0] == unsteered
    assert "= the same reply" in steered._exchanges.value


def test_a_strength_that_was_seen_is_not_asked_again(steered, monkeypatch):
    steered.exchanges.clear()
    steered.strength.value = 1.0
    steered.chat("Hello.")
    done(steered)
    steered.strength.value = 0.5
    done(steered)
    monkeypatch.setattr(steered, "_generate", None)
    steered.strength.value = 1.0
    done(steered)
    assert steered.error == ""
    assert steered.exchanges[-1].strength == 1.0
    monkeypatch.undo()


def test_a_strength_chosen_while_both_reply_loses_no_message(steered, monkeypatch):
    steered.exchanges.clear()
    steered.strength.value = 1.0
    steered.chat("First.")
    done(steered)
    generate = steered._generate

    def moved(prompt, strength, stop):
        steered.strength.value = 0.5
        return generate(prompt, strength, stop)

    monkeypatch.setattr(steered, "_generate", moved)
    steered.chat("Second.")
    done(steered)
    assert [one.text for one in steered.exchanges] == ["First.", "Second."]
    assert steered.exchanges[-1].strength == 0.5
    assert set(steered.exchanges[-1].steered) == {1.0, 0.5}
    assert steered.exchanges[0].strength == 1.0


def test_a_dialogue_goes_on_with_each_models_own_replies(steered):
    steered.exchanges.clear()
    steered.strength.value = 2.0
    steered.go_on.value = True
    for text in ("Hello.", "Give me a hint."):
        steered.chat(text)
        done(steered)
    first, second = steered.exchanges
    for prompt, reply in (
        (second.unsteered_prompt, first.unsteered),
        (second.steered_prompt, first.steered[2.0]),
    ):
        assert [turn["content"] for turn in prompt] == ["Hello.", reply, "Give me a hint."]
        assert [turn["role"] for turn in prompt] == ["user", "assistant", "user"]
    steered.go_on.value = False
    steered.chat("Anew.")
    done(steered)
    assert len(steered.exchanges[-1].steered_prompt) == 1
    shown = steered._exchanges.value
    assert shown.index("Anew.") < shown.index("Hello."), "the newest stands first"


def test_enter_sends(steered):
    steered.exchanges.clear()
    steered.message.value = "Hello."
    steered.message._handle_custom_msg({"event": "submit"}, [])
    done(steered)
    assert [one.text for one in steered.exchanges] == ["Hello."]


def test_a_reply_that_is_stopped_is_left_out(steered, monkeypatch):
    steered.exchanges.clear()

    def generate(_prompt, _strength, stop):
        steered.stop()
        assert stop.wait(10)
        return "half a re"

    monkeypatch.setattr(steered, "_generate", generate)
    steered.chat("Hello.")
    done(steered)
    assert steered.exchanges == []
    assert "Stopped." in steered.status.value
    assert "half a re" not in steered._exchanges.value


def test_what_cannot_be_said_or_saved_is_said(panel):
    assert panel.send_button.disabled
    assert panel.save_button.disabled
    for action in (lambda: panel.chat("Hello."), panel.save):
        action()
        assert panel.error == "SteeringError: There is no steered model yet. Run first."
    panel.chat(" ")
    assert panel.error.startswith("SteeringError: The message is empty")
    panel.folder.value = ""
    panel.save()
    assert panel.error.startswith("SteeringError: There is no folder")
    panel.strength.value = 0
    panel.folder.value = "somewhere"
    panel.save()
    assert panel.error.startswith("SteeringError: At strength 0 nothing is steered")


# --- saving and showing ------------------------------------------------------------------------


def test_what_is_saved_is_an_adapter_of_peft(steered, lab, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steered.exchanges.clear()
    steered.folder.value = "mine"
    steered.strength.value = 2.0
    steered.save_button.click()
    done(steered)
    assert steered.saved == (tmp_path / "mine").resolve()
    assert str(steered.saved) in steered._saved.value
    assert str(steered.saved) in steered.status.value
    assert json.loads((steered.saved / "adapter_config.json").read_text())["lora_alpha"] == 32
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base").to(lab.model.dtype)
    loaded = PeftModel.from_pretrained(base, str(steered.saved))
    ids = torch.tensor([lab.model.encode(PROMPTS[0]).token_ids])
    with steered.result.live(2.0) as adapter, lab.model.inference(adapter), torch.no_grad():
        expected = lab.model.hf_model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
    (steered.saved / "other.txt").write_text("mine")
    steered.save()
    done(steered)
    assert steered.error.startswith("FileExistsError: ")


def test_it_can_be_seen_without_script(steered, tmp_path: Path):
    steered.exchanges.clear()
    steered.chat(HOSTILE)
    done(steered)
    assert steered.error == ""
    shown = steered.snapshot().data
    page = steered.save_html(tmp_path / "page.html").read_text()
    for text in (PAIRS[0][1], "Loss curve:", "Before and after", "Chat with both", "steered, str"):
        assert text in shown
        assert text in page
    assert "result = steer(" in page
    for html in (shown, page, steered._exchanges.value):
        assert "<script>alert" not in html
        assert "<b>bold" not in html
    assert "https://" not in page


def test_text_of_users_is_escaped(lab):
    panel = SteerPanel(
        lab.model,
        lab.oracle,
        behaviour=[(HOSTILE, HOSTILE)],
        prompts=[HOSTILE, f"two\nlines {HOSTILE}"],
        layers=[2],
    )
    assert len(panel.request.prompts) == 2
    panel.sentence.value = HOSTILE
    for kind in ("pairs", "sentence"):
        panel.kind.value = kind
        for widget in (panel._code, panel._pairs_note, panel._prompts_note, panel.status):
            assert "<script>alert" not in widget.value
        assert "<script>alert" not in panel.snapshot().data
        compile(panel.code(), "copied from the panel", "exec")
    panel.close()


def test_before_a_run_it_says_so(panel):
    assert "Nothing was run yet" in panel.snapshot().data
    assert "Nothing was run yet" in panel._curve.value
    assert "Run makes it" in panel._exchanges.value
    assert repr(panel) == "SteerPanel('Steer a model')"


def test_what_a_panel_is_given_stands_in_it(lab):
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    panel = SteerPanel(
        lab.model,
        lab.oracle,
        behaviour=Behaviour(Behaviour.of(PAIRS).pairs, "A sentence."),
        prompts=["One.", "Two\nlines.", chat],
        window=7,
        gradient_checkpointing=True,
    )
    request = panel.request
    assert request.behaviour == Behaviour(Behaviour.of(PAIRS).pairs, "A sentence.")
    assert request.prompts == (
        [{"role": "user", "content": "One."}],
        [{"role": "user", "content": "Two\nlines."}],
        chat,
    )
    assert (request.window, request.gradient_checkpointing) == (7, True)
    panel.close()
