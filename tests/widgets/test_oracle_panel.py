"""OraclePanel: its mechanics with a fake oracle, its answers with the embedded models."""

import dataclasses
import signal
import threading
import time
from pathlib import Path

import pytest
from fakes import SOON, FakeModel, FakeOracle
from hypothesis import given, settings
from hypothesis import strategies as st

from aotoolkit.errors import LayerError, PromptError, QuestionError, UnknownAdapterError
from aotoolkit.widgets import OraclePanel

CHAT = [{"role": "user", "content": "Give me a hint."}]
HOSTILE = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def oracle():
    return FakeOracle()


@pytest.fixture
def panel(model, oracle):
    made = OraclePanel(model, oracle, prompt="abcdef", adapter="red", layers=[2, 4, 6])
    yield made
    oracle.gate.set()
    made.close()
    assert made.wait(SOON), "a closed panel still works"


def done(panel: OraclePanel) -> OraclePanel:
    assert panel.wait(SOON), "the panel hangs"
    return panel


def last_text(panel: OraclePanel) -> str:
    (answers,) = panel.history[-1].answers.values()
    return answers[0].text


# --- what is asked -----------------------------------------------------------------------------


def test_a_click_asks_about_what_is_chosen(panel, model):
    panel.tokens.selection = [1, 2, 4]
    panel.layers.show([4])
    panel.question.value = "  Who are you? "
    panel.ask_button.click()
    done(panel)
    (asked,) = panel.history
    assert asked.request.positions == (1, 2, 4)
    assert asked.request.question == "Who are you?"
    (answer,) = asked.answers["oracle"]
    assert (answer.text, answer.positions, answer.layers) == ("red at [4]", (1, 2, 4), (4,))
    assert panel.error == ""
    assert "red at [4]" in panel.answers.value
    assert model.reads == ["red"]


def test_each_layer_is_asked_about_alone_where_the_contract_has_one_a_prompt(panel):
    panel.layers.show([2, 6])
    panel.ask()
    done(panel)
    assert [a.text for a in panel.history[-1].answers["oracle"]] == ["red at [2]", "red at [6]"]


def test_all_layers_stand_in_one_prompt_where_the_contract_has_several(model):
    oracle = FakeOracle(layers_per_prompt="several")
    panel = OraclePanel(model, oracle, prompt="abc")
    panel.layers.show([2, 6])
    panel.ask()
    done(panel)
    assert [a.text for a in panel.history[-1].answers["oracle"]] == ["None at [2, 6]"]
    panel.close()


def test_several_oracles_answer_side_by_side(model):
    panel = OraclePanel(model, {"one": FakeOracle(text="yes"), "two": FakeOracle()}, prompt="abc")
    panel.ask()
    done(panel)
    said = {name: own[0].text for name, own in panel.history[-1].answers.items()}
    assert said == {"one": "yes", "two": "None at [4]"}
    assert panel.answers.value.count('class="aop-card"') == 2
    assert list(panel.to_dataframe()["oracle"]) == ["one", "two"]
    panel.grid_oracle.value = "two"
    panel.fill_grid()
    done(panel)
    assert {cell.text for cell in panel.answer_grid.cells.values()} == {"None at [4]"}
    panel.close()


def test_the_oracles_own_adapter_is_no_model_to_read(panel):
    assert [value for _, value in panel.adapter.options] == [None, "red", "blue"]


def test_the_base_is_a_choice_like_any_other(model, oracle):
    """ipywidgets takes None for no choice at all, and would show an empty field."""
    panel = OraclePanel(model, oracle, prompt="abc")
    assert (panel.adapter.label, panel.adapter.value) == ("base model", None)
    panel.adapter.value = "red"
    assert panel.adapter.label == "red"
    panel.adapter.value = None
    assert (panel.adapter.label, panel.adapter.value) == ("base model", None)
    panel.ask()
    done(panel)
    assert model.reads == [None]
    panel.close()


def test_an_adapter_that_is_loaded_later_is_offered(panel, model):
    names = []
    panel.adapter.observe(lambda change: names.append(change.new), names="value")
    model.adapter_names = ("blue", "red", "green", "oracle")
    button = next(
        widget
        for row in panel.children
        for widget in getattr(row, "children", ())
        if "loaded since" in (getattr(widget, "tooltip", None) or "")
    )
    button.click()
    assert [value for _, value in panel.adapter.options] == [None, "blue", "red", "green"]
    assert panel.adapter.value == "red"
    panel.adapter.value = "green"
    model.adapter_names = ("red", "oracle")
    panel.refresh_adapters()
    assert (panel.adapter.label, panel.adapter.value) == ("base model", None)


def test_nothing_chosen_is_said_and_not_asked(panel):
    panel.tokens.selection = []
    assert panel.ask_button.disabled
    panel.ask()
    done(panel)
    assert panel.error.startswith("QuestionError: Nothing is chosen as tokens.")
    panel.layers.show([])
    panel.question.value = " "
    panel.ask()
    assert "tokens and layers and question" in panel.error
    assert not panel.history
    panel.tokens.selection = [0]
    panel.layers.show([2])
    panel.question.value = "Why?"
    assert not panel.ask_button.disabled
    panel.ask()
    done(panel)
    assert panel.error == ""
    assert len(panel.history) == 1


def test_an_empty_prompt_is_said(panel):
    panel.editor.text.value = ""
    assert panel.error.startswith("PromptError: The prompt is empty")
    assert panel.ask_button.disabled
    panel.write_reply()
    assert panel.error.startswith("PromptError")
    panel.editor.text.value = "xyz"
    assert panel.error == ""
    assert panel.tokens.tokens == ["x", "y", "z"]
    assert not panel.ask_button.disabled


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"questions": []}, QuestionError),
        ({"adapter": "nobody"}, UnknownAdapterError),
    ],
)
def test_what_a_panel_cannot_be_made_of(model, oracle, options, error):
    with pytest.raises(error):
        OraclePanel(model, oracle, prompt="abc", **options)
    with pytest.raises(LayerError, match="out of range"):
        OraclePanel(model, oracle, prompt="abc", layers=[2, 99])
    with pytest.raises(LayerError, match="No layers"):
        OraclePanel(model, oracle, prompt="abc", layers=[])
    with pytest.raises(QuestionError, match="0 and 5"):
        OraclePanel(model, {}, prompt="abc")


# --- streaming and threads ---------------------------------------------------------------------


def test_the_answer_streams_and_then_has_its_controls(panel, oracle):
    states = []
    panel.answers.observe(lambda change: states.append(change.new), names="value")
    panel.ask()
    done(panel)
    question, first, *_ = states
    assert "aop-card" not in question
    assert "red" in first
    assert "aop-waiting" in first
    assert "red at [4]" not in first
    assert "aop-verdict aop-supported" in states[-1]
    assert "nothing" in states[-1]


def test_an_answer_is_painted_at_most_twenty_times_a_second(panel, oracle):
    oracle.text = "word " * 3000
    states = []
    panel.answers.observe(lambda _: states.append(1), names="value")
    begun = time.perf_counter()
    panel.ask()
    done(panel)
    # Beside them: the question, the first piece, the whole answer, its controls.
    assert len(states) <= 4 + 20 * (time.perf_counter() - begun)


def test_callbacks_return_while_the_model_works(panel, oracle):
    oracle.gate.clear()
    begun = time.perf_counter()
    panel.ask_button.click()
    assert oracle.paused.wait(SOON)
    panel.question.value = "Another?"
    panel.adapter.value = None
    assert time.perf_counter() - begun < SOON / 2
    assert panel.busy
    oracle.gate.set()
    done(panel)


def test_stop_keeps_what_was_said_and_trusts_it_not(panel, oracle):
    oracle.gate.clear()
    panel.ask()
    assert oracle.paused.wait(SOON)
    assert not panel.stop_button.disabled
    panel.stop_button.click()
    done(panel)
    (asked,) = panel.history
    assert asked.stopped
    assert list(asked.said.values()) == ["red "]
    assert oracle.stopped == 1
    assert "Stopped before its controls were asked" in panel.answers.value
    assert panel.stop_button.disabled
    frame = panel.to_dataframe()
    assert frame["stopped"].tolist() == [True]
    assert frame["supported"].tolist() == [None]
    oracle.gate.set()
    panel.ask()
    done(panel)
    assert not panel.history[-1].stopped


def test_the_second_of_two_asks_replaces_the_first(panel, oracle):
    oracle.gate.clear()
    panel.question.value = "First?"
    panel.ask()
    assert oracle.paused.wait(SOON)
    panel.question.value = "Second?"
    panel.adapter.value = "blue"
    panel.ask()
    oracle.gate.set()
    done(panel)
    first, second = panel.history
    assert first.stopped
    assert (first.request.question, first.request.adapter) == ("First?", "red")
    assert (second.request.question, second.request.adapter) == ("Second?", "blue")
    assert second.answers["oracle"][0].text == "blue at [4]"
    assert "blue at [4]" in panel.answers.value
    assert "red" not in panel.answers.value


def test_an_adapter_changed_in_mid_answer_changes_the_next_answer_only(panel, oracle):
    oracle.gate.clear()
    panel.ask()
    assert oracle.paused.wait(SOON)
    panel.adapter.value = "blue"
    panel.layers.show([2])
    oracle.gate.set()
    done(panel)
    (asked,) = panel.history
    (answer,) = asked.answers["oracle"]
    assert answer.text == "red at [4]"
    assert "reads red" in panel.answers.value
    assert "blue" not in panel.answers.value
    panel.ask()
    done(panel)
    assert last_text(panel) == "blue at [2]"


def test_many_threads_that_ask_at_once_leave_one_answer_each_right(panel):
    """As from two browser tabs; whatever is answered says whom it read."""

    def ask(adapter: str) -> None:
        for _ in range(10):
            panel.adapter.value = adapter
            panel.ask()

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("red", "blue")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    done(panel)
    assert panel.error == ""
    for asked in panel.history:
        for answer in asked.answers.get("oracle", ()):
            assert answer.text.startswith(f"{asked.request.adapter} at")
    assert not panel.history[-1].stopped


def test_a_request_never_mixes_a_prompt_with_the_tokens_of_another(panel, oracle):
    """The prompt changes on one thread while another asks."""
    texts = ["ab", "abcdefghijklmnopqrst"]
    ended = threading.Event()

    def write() -> None:
        for number in range(60):
            panel.editor.text.value = texts[number % 2]
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not ended.is_set():
        request = panel.request
        assert request.positions[-1] == len(request.prompt) - 1, request
        seen.add(request.prompt)
    thread.join(SOON)
    assert seen <= {*texts, "abcdef"}


def test_an_error_is_shown_and_the_panel_stays_usable(panel, model):
    model.fail = LayerError(f"Layer 99 {HOSTILE}")
    panel.ask()
    done(panel)
    assert panel.error.startswith("LayerError: Layer 99")
    assert "LayerError: Layer 99" in panel.status.value
    assert "<script" not in panel.status.value
    assert not panel.ask_button.disabled
    panel.write_reply()
    done(panel)
    assert panel.error.startswith("LayerError")
    model.fail = None
    panel.ask()
    done(panel)
    assert panel.error == ""
    assert last_text(panel) == "red at [4]"


def test_a_closed_panel_with_work_under_way_does_not_hang(panel, oracle):
    oracle.gate.clear()
    panel.ask()
    assert oracle.paused.wait(SOON)
    panel.close()
    done(panel)
    panel.ask()  # nothing, and no error
    assert not panel.busy


def test_an_interrupt_in_mid_answer_stops_it(panel, oracle):
    oracle.gate.clear()
    panel.ask()
    assert oracle.paused.wait(SOON)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            panel.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    done(panel)
    assert panel.history[-1].stopped


# --- the prompt --------------------------------------------------------------------------------


def test_turns_are_added_written_and_removed(model, oracle):
    panel = OraclePanel(model, oracle, prompt=CHAT)
    panel.editor.add.click()
    assert panel.editor.value == CHAT, "a turn without text is no part of the prompt"
    role, content = panel.editor.turns[-1]
    assert role.value == "assistant"
    content.value = "Green."
    assert panel.editor.value == [*CHAT, {"role": "assistant", "content": "Green."}]
    assert "".join(panel.tokens.tokens) == "Give me a hint.Green."
    role.value = "system"
    assert panel.editor.value[-1]["role"] == "system"
    panel.editor.remove_turn(0)
    assert panel.editor.value == [{"role": "system", "content": "Green."}]
    panel.editor.kind.value = "Plain text"
    assert panel.editor.value == "Green."
    panel.editor.kind.value = "Chat"
    assert panel.editor.value == [{"role": "system", "content": "Green."}]
    panel.close()


def test_the_model_writes_the_reply(model, oracle):
    panel = OraclePanel(model, oracle, prompt=CHAT, adapter="red")
    panel.reply_button.click()
    done(panel)
    assert panel.editor.value == [*CHAT, {"role": "assistant", "content": "I am red."}]
    panel.adapter.value = "blue"
    panel.write_reply()  # writes the last reply anew
    done(panel)
    assert panel.editor.value == [*CHAT, {"role": "assistant", "content": "I am blue."}]
    panel.editor.show("The text: ")
    panel.write_reply()
    done(panel)
    assert panel.editor.value == "The text: I am blue."
    panel.close()


def test_a_reply_to_a_prompt_that_was_changed_is_left_out(model, oracle):
    panel = OraclePanel(model, oracle, prompt=CHAT)
    release = threading.Event()
    generate = model.generate

    def slow(*args, **options):
        assert release.wait(SOON)
        return generate(*args, **options)

    model.generate = slow
    panel.write_reply()
    panel.editor.turns[0][1].value = "Something else."
    release.set()
    done(panel)
    assert panel.editor.value == [{"role": "user", "content": "Something else."}]
    assert "left out" in panel.status.value
    panel.close()


def test_a_model_without_chat_template_takes_plain_text(oracle):
    model = FakeModel()
    model.tokenizer = type("Bare", (), {"chat_template": None})()
    panel = OraclePanel(model, oracle)
    assert panel.editor.kind.disabled
    assert panel.editor.value == "Give me a hint."
    panel.close()


def test_a_cap_on_tokens_holds_for_what_is_chosen_at_first(model, oracle):
    panel = OraclePanel(model, oracle, prompt="abcdefghijklmnop", max_positions=3)
    assert panel.tokens.selection == [13, 14, 15]
    panel.close()


# --- grid, history, code -----------------------------------------------------------------------


def test_a_grid_fills_cell_by_cell(panel):
    panel.layers.show([2, 6])
    panel.tokens.selection = [0, 3]
    panel.grid_button.click()
    done(panel)
    assert panel.tabs.selected_index == 1
    assert panel.answer_grid.complete
    assert panel.grid.texts == [["red at [2]"] * 2, ["red at [6]"] * 2]
    assert (panel.grid.layers, panel.grid.positions) == ([2, 6], [0, 3])
    panel.grid.cell = [6, 3]
    assert "red at [6]" in panel._cell.value
    assert "4 cells" in panel.status.value


def test_a_stopped_grid_keeps_its_cells(panel, oracle):
    panel.tokens.selection = [0, 1, 2]
    oracle.gate.clear()
    panel.fill_grid()
    assert oracle.paused.wait(SOON)
    panel.stop()
    done(panel)
    assert len(panel.answer_grid.cells) == 1
    assert "Stopped after 1 of 3 cells" in panel.status.value
    assert panel.grid.texts == [["red at [4]", "", ""]]


def test_use_again_chooses_what_was_asked(panel):
    panel.tokens.selection = [1, 5]
    panel.layers.show([6])
    panel.ask()
    done(panel)
    first = panel.history[0].request
    panel.editor.show(CHAT)
    panel.adapter.value = None
    panel.question.value = "Other?"
    panel.ask()
    done(panel)
    assert panel.request != first
    panel.use_again(1)
    assert panel.request == first
    with pytest.raises(QuestionError, match="no row 3 in the history, which has 2"):
        panel.use_again(3)
    buttons = [row.children[0] for row in panel._history_box.children]
    buttons[0].click()  # the newest stands first
    assert panel.request == panel.history[1].request


def test_use_again_says_that_an_adapter_is_gone_and_changes_nothing(panel, monkeypatch):
    panel.ask()
    done(panel)
    asked = panel.history[0]
    gone = dataclasses.replace(asked.request, adapter="gone", question="Old?")
    panel.history[0] = dataclasses.replace(asked, request=gone)
    before = panel.request
    with pytest.raises(UnknownAdapterError, match="'gone', which is not in the model"):
        panel.use_again(1)
    assert panel.request == before
    panel._show_history()
    panel._history_box.children[0].children[0].click()
    assert panel.error.startswith("UnknownAdapterError")
    assert panel.request == before


def test_an_exported_answer_stands_with_the_prompt_it_is_about(panel):
    panel.ask()
    done(panel)
    assert "Asked about:" not in panel.static_html()
    asked_about = panel.history[0].request.prompt
    assert asked_about == "abcdef"
    panel.editor.show([{"role": "user", "content": "A prompt that was never asked about."}])
    exported = panel.static_html()
    about, answer = exported.index("Asked about:"), exported.index("red at [4]")
    assert about < exported.index(asked_about, about) < answer
    assert asked_about in "".join(part for part in panel.page_parts() if isinstance(part, str))


def test_the_history_is_a_table(panel):
    assert panel.to_dataframe().empty
    panel.layers.show([2, 4])
    panel.ask()
    done(panel)
    frame = panel.to_dataframe()
    assert frame["number"].tolist() == [1, 1]
    assert frame["layers"].tolist() == [(2,), (4,)]
    assert frame["answer"].tolist() == ["red at [2]", "red at [4]"]
    assert frame["supported"].tolist() == [True, True]


@settings(max_examples=15)
@given(st.sampled_from([HOSTILE, "‮<b>", "\x00<i>&amp;"]), st.text(min_size=1, max_size=30))
def test_all_text_is_escaped(hostile, text):
    model, oracle = FakeModel(), FakeOracle(text=hostile)
    panel = OraclePanel(model, {hostile: oracle}, prompt=f"{hostile}{text}")
    panel.question.value = hostile
    panel.ask()
    done(panel)
    panel.fill_grid()
    done(panel)
    assert not panel.error
    panel.grid.cell = [4, panel.tokens.selection[0]]
    rows = [row.children[1].value for row in panel._history_box.children]
    pages = [panel.answers.value, panel._cell.value, panel._code.value, *rows]
    for shown in [*pages, panel.static_html(), panel._title.value]:
        assert "<script" not in shown
        assert "<img" not in shown
        assert "<b>model" not in shown
        assert "<i>&amp;" not in shown.replace("<i></i>", "")
    panel.close()


def test_support_is_said_in_words_and_by_a_sign(model):
    panel = OraclePanel(model, FakeOracle(text="a guess"), prompt="abc")
    panel.ask()
    done(panel)
    shown = panel.answers.value
    assert "✗ Not supported by the activations: the same answer comes from the text in" in shown
    assert shown.count("= the same") == 1
    assert "0.61, not calibrated" in shown
    panel.close()


def test_the_notice_stands_in_the_panel_the_snapshot_and_the_page(panel, tmp_path: Path):
    assert "Oracles confabulate." in panel._title.value
    assert "Oracles confabulate." in panel.snapshot().data
    page = panel.save_html(tmp_path / "panel.html").read_text()
    assert "Oracles confabulate." in page


def test_every_view_has_a_fallback_without_script(panel):
    panel.ask()
    done(panel)
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "red at [4]" in data["text/html"]
    assert "<script" not in data["text/html"]


def test_a_page_holds_everything_and_needs_nothing(panel, tmp_path: Path):
    panel.ask()
    done(panel)
    panel.fill_grid()
    done(panel)
    page = panel.save_html(tmp_path / "panel.html").read_text()
    for text in ("red at [4]", "model.activations(", "oracle.ask_each(", "History"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_controls_have_names(panel):
    """A control without a description is named by its tooltip, which becomes its title."""
    unnamed = [
        widget
        for widget in panel_controls(panel)
        if not (getattr(widget, "description", "") or widget.tooltip)
    ]
    assert not unnamed


def panel_controls(widget):
    if hasattr(widget, "children"):
        for child in widget.children:
            yield from panel_controls(child)
    elif hasattr(widget, "description") and not type(widget).__name__.startswith(("HTML", "Label")):
        yield widget


# --- with the embedded models ------------------------------------------------------------------


@pytest.fixture
def real(lab):
    organism = next(iter(lab.organisms))
    panel = OraclePanel(lab.model, lab.oracle, prompt=CHAT, adapter=organism)
    yield panel
    panel.close()


def run(code: str, panel: OraclePanel) -> dict:
    names = {"model": panel.model, "oracle": panel.oracles.get("oracle"), "oracles": panel.oracles}
    exec(compile(code, "copied from the panel", "exec"), names)
    return names


@pytest.mark.parametrize("layers", [[4], [2, 4]])
@pytest.mark.parametrize("prompt", [CHAT, "The secret is"])
def test_the_code_gives_the_same_answer(real, layers, prompt):
    real.editor.show(prompt)
    real.layers.show(layers)
    real.ask()
    assert real.wait(60)
    assert real.error == ""
    asked = real.history[-1]
    names = run(real.code(), real)
    again = names["answers"] if len(layers) > 1 else [names["answer"]]
    assert list(asked.answers["oracle"]) == again


def test_the_code_of_several_oracles_gives_the_same_answers(lab):
    panel = OraclePanel(lab.model, {"a": lab.oracle, "b": lab.oracle}, prompt=CHAT)
    panel.ask()
    assert panel.wait(60)
    names = run(panel.code(), panel)
    asked = panel.history[-1].answers
    assert {name: (answer,) for name, answer in names["answers"].items()} == asked
    panel.close()


def test_the_code_of_a_grid_gives_the_same_cells(real):
    real.layers.show([2, 4])
    real.tokens.select(slice(-3, None))
    real.max_new_tokens.value = 6
    real.fill_grid()
    assert real.wait(60)
    assert real.error == ""
    names = run(real.code(), real)
    assert names["grid"].cells == real.answer_grid.cells


def test_the_streamed_text_is_the_answers(real):
    streamed = []
    real.answers.observe(lambda change: streamed.append(change.new), names="value")
    real.ask()
    assert real.wait(60)
    (answer,) = real.history[-1].answers["oracle"]
    before_controls = [state for state in streamed if "asking again" in state][-1]
    assert answer.text in before_controls


def test_the_panel_asks_while_a_cell_asks_the_same_model(real, lab):
    """Their forwards take turns by the model's lock, and both get what they would get alone."""
    acts = lab.model.activations(CHAT, layers=[4])[-5:]
    alone = lab.oracle.ask("What is the secret word?", acts)
    real.ask()
    together = [lab.oracle.ask("What is the secret word?", acts) for _ in range(3)]
    assert real.wait(60)
    assert real.error == ""
    assert [answer.text for answer in together] == [alone.text] * 3
    request = real.history[-1].request
    read = lab.model.activations(CHAT, **request.read_options)
    assert last_text(real) == lab.oracle.ask(request.question, read, window="all").text


def test_a_real_answer_is_stopped_in_the_middle(real):
    real.max_new_tokens.value = 200
    real.question.value = "What does this say, word for word?"
    real.editor.show("word " * 40)
    real.tokens.select(slice(None))
    started = threading.Event()
    real.answers.observe(lambda _: started.set(), names="value")
    real.ask()
    assert started.wait(60)
    real.stop()
    assert real.wait(30)
    assert real.error == ""
    assert real.model.lock.acquire(timeout=5), "the lock was left taken"
    real.model.lock.release()


def test_the_model_with_the_chosen_adapter_writes_the_reply(real, lab):
    real.write_reply()
    assert real.wait(60)
    said = lab.model.generate(CHAT, adapter=real.adapter.value, max_new_tokens=64)
    assert real.editor.value == [*CHAT, {"role": "assistant", "content": said}]
    selected = {real.tokens.tokens[place] for place in real.tokens.selection}
    assert any(token.strip() and token.strip() in said for token in selected)


# --- what stands there means what it says ------------------------------------------------------


def test_answers_stand_under_the_question_they_answer(panel, oracle):
    panel.question.value = "Who <i>are</i> you?"
    panel.ask()
    done(panel)
    panel.question.value = "Something else?"
    assert "Who &lt;i&gt;are&lt;/i&gt; you?" in panel.answers.value
    seen = []
    panel.answers.observe(lambda change: seen.append(change.new), names="value")
    panel.ask()
    done(panel)
    assert seen
    assert all("Something else?" in shown and "Who" not in shown for shown in seen)


def test_an_error_in_mid_answer_leaves_no_card_waiting(panel, oracle):
    def fail(*_args, **_options):
        raise RuntimeError("out of memory")

    oracle.ask = fail
    panel.ask()
    done(panel)
    assert panel.error == "RuntimeError: out of memory"
    assert "Ended by an error" in panel.answers.value
    assert "…" not in panel.answers.value
    assert "aop-waiting" not in panel.answers.value


def test_why_a_prompt_cannot_be_read_is_said_again_when_asked(panel, model):
    def refuse(*_args, **_options):
        raise PromptError("the template refuses it")

    model.encode = refuse
    panel.editor.text.value = "another"
    panel.tokens.selection = [0]
    panel.ask()
    assert panel.error == "PromptError: the template refuses it"
    assert "the template refuses it" in panel.code()


def test_a_cell_chosen_before_it_is_filled_shows_its_answer_then(panel, oracle):
    panel.layers.show([2])
    panel.tokens.selection = [0, 1]
    oracle.gate.clear()
    panel.fill_grid()
    assert oracle.paused.wait(SOON)
    panel.grid.cell = [2, 0]
    assert "1 token (0)" in panel._cell.value
    panel.grid.cell = [2, 1]
    assert "1 token (0)" not in panel._cell.value
    place = panel.grid.cell
    panel.stop()
    done(panel)
    oracle.gate.set()

    def choose_first(_change):
        panel.grid.cell = place

    panel._grid_box.observe(choose_first, names="children")
    panel.fill_grid()
    done(panel)
    assert "1 token (1)" in panel._cell.value


def test_widgets_that_are_replaced_are_closed(panel):
    from ipywidgets.widgets import widget

    def count() -> int:
        panel.ask()
        done(panel)
        panel.use_again(1)
        panel.fill_grid()
        done(panel)
        return len(widget._instances)

    row = 3 * 3  # button, text and box with layouts and styles: what one row of a history has
    first, second, third = count(), count(), count()
    assert second - first <= row
    assert third - second <= row
