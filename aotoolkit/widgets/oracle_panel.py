"""What people open the package for: a prompt, its tokens, layers, a question, an answer."""

import bisect
import contextlib
import dataclasses
import html
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import TraitError

from aotoolkit.errors import AOToolkitError, PromptError, QuestionError, UnknownAdapterError
from aotoolkit.tracing.encoding import ends_with_reply
from aotoolkit.widgets.answer_view import (
    Reading,
    answer_html,
    asked_html,
    cards_html,
    dialogue_html,
    model_name,
    ranges_text,
    read_name,
    streaming_html,
    table_html,
    verdict_text,
)
from aotoolkit.widgets.layer_choice import LayerChoice
from aotoolkit.widgets.layer_token_grid import LayerTokenGrid
from aotoolkit.widgets.panel import (
    Panel,
    close_all,
    look_again_button,
    step_html,
    style_box,
)
from aotoolkit.widgets.prompt_editor import PromptEditor
from aotoolkit.widgets.request import Request, asked_about
from aotoolkit.widgets.token_select import TokenSelect

if TYPE_CHECKING:
    import pandas

    from aotoolkit.oracle import Answer, AnswerGrid, Oracle
    from aotoolkit.tracing import Encoded, TracedModel
    from aotoolkit.tracing.encoding import Message
    from aotoolkit.widgets.base import FrontEnd
    from aotoolkit.widgets.export import HasHTML

QUESTIONS = (
    "What is the secret word?",
    "What is the model thinking about?",
    "What will the model say next?",
    "What does the model know about the user?",
    "What is the model trying to hide?",
)
# Answers are painted at most this often; a browser and a reader can do with less.
_SECONDS_BETWEEN_PAINTS = 0.05
_TOKENS_OF_A_TEXT = 10
_TOKENS_OF_A_REPLY = 64
_ROWS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One row of the history.

    Attributes:
        number: From 1 on.
        request: What was asked.
        answers: Oracle -> its answers, one for each layer asked about alone; empty where it was
            stopped before its controls were asked.
        said: What each had said when it was stopped; empty otherwise.
        seconds: How long it took.
    """

    number: int
    request: Request
    answers: Mapping[str, tuple["Answer", ...]]
    said: Mapping[Reading, str] = field(default_factory=dict)
    seconds: float

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before its end."""
        return not self.answers


class OraclePanel(Panel):
    """Write a prompt, choose tokens and layers, ask, and watch the answer arrive with its controls.

    What is clicked can be called: `ask`, `stop`, `fill_grid`, `write_reply`, `use_again`. They
    return at once, and `wait` waits. The tab "Code" holds the public calls that give the same
    answer. A new job replaces one that is under way.

    Attributes:
        model: The target model.
        oracles: Name -> oracle.
        editor: The prompt; `editor.value` and `editor.show(...)`.
        adapter: Whose activations are read (`adapter.value`; None for the base).
        tokens: The tokens of the prompt; `tokens.select("assistant")`.
        layers: The layers; `layers.show([4])`.
        question: The question (`question.value`).
        history: What was asked, oldest first.
        grid: The layer x token grid that was last filled.
        answer_grid: The same as the `AnswerGrid` of `Oracle.ask_each`; None before the first.
    """

    title = "Ask an oracle"

    def __init__(
        self,
        model: "TracedModel",
        oracle: "Oracle | Mapping[str, Oracle]",
        *,
        prompt: "str | Sequence[Message] | None" = None,
        adapter: str | None = None,
        layers: Sequence[int] | None = None,
        questions: Sequence[str] = QUESTIONS,
        max_positions: int | None = None,
        max_new_tokens: int = 32,
    ) -> None:
        """Shows the panel.

        Args:
            model: The target model, with its adapters.
            oracle: An oracle, or several by name, which are asked side by side.
            prompt: Chat messages or a text; by default a chat that asks for a hint.
            adapter: Whose activations are read at first.
            layers: Those that can be chosen; by default those that the oracles were trained on.
            questions: Presets; the first stands there at first.
            max_positions: How many tokens may be chosen; any number by default.
            max_new_tokens: Longest answer.

        Raises:
            QuestionError: There are no oracles or no questions.
            UnknownAdapterError: The model has no such adapter.
            LayerError: A layer that the model does not have.
        """
        super().__init__("oracle-panel")
        self.model = model
        self.oracles = dict(oracle) if isinstance(oracle, Mapping) else {"oracle": oracle}
        if not self.oracles or not questions:
            raise QuestionError(
                f"A panel needs one oracle and one question at least; it was given "
                f"{len(self.oracles)} and {len(questions)}."
            )
        self.history: list[Asked] = []
        self.answer_grid: AnswerGrid | None = None
        self._grid_request: Request | None = None
        # Callbacks run on several threads: what is asked is the prompt whose tokens are shown.
        self._choosing = threading.RLock()
        self._prompt: Any = None
        self._prompt_error = _empty_prompt()  # why there is no prompt, where there is none
        self._make_prompt(prompt, adapter)
        self._make_question(layers, questions, max_positions, max_new_tokens)
        self._make_results()
        self._lay_out()
        self._encode()

    # The controls

    def _make_prompt(self, prompt: "str | Sequence[Message] | None", adapter: str | None) -> None:
        can_chat = bool(getattr(self.model.tokenizer, "chat_template", None))
        if prompt is None:
            hint = "Give me a hint."
            prompt = [{"role": "user", "content": hint}] if can_chat else hint
        self.editor = PromptEditor(prompt, can_chat=can_chat)
        self._given_adapter = adapter
        if adapter is not None:
            self.model.adapter_digest(adapter)  # raises where there is none
        names = self._adapters()
        self.adapter = ipywidgets.Dropdown(
            options=names,
            index=[value for _, value in names].index(adapter),
            description="Model",
            tooltip="Whose activations are read",
            style={"description_width": "5em"},
            layout={"width": "22em"},
        )
        self.reply_button = ipywidgets.Button(
            description="Let the model reply",
            icon="pencil",
            tooltip="The chosen model writes the next turn",
            layout={"width": "auto"},
        )
        self.reply_button.on_click(lambda _: self.write_reply())
        self.editor.observe(self._encode, names="value")

    def _adapters(self) -> list[tuple[str, str | None]]:
        """What can be read: the base, and all adapters but the oracles' own."""
        taken = {oracle.adapter for oracle in self.oracles.values()} - {self._given_adapter}
        names = [name for name in self.model.adapter_names if name not in taken]
        return [(model_name(None), None), *((name, name) for name in names)]

    def refresh_adapters(self) -> None:
        """Offers the adapters that the model has now; the chosen one stays chosen."""
        chosen, names = self.adapter.value, self._adapters()
        if names != list(self.adapter.options):
            self.adapter.options = names
            values = [value for _, value in names]
            self.adapter.index = values.index(chosen) if chosen in values else 0

    def _make_question(
        self,
        layers: Sequence[int] | None,
        questions: Sequence[str],
        max_positions: int | None,
        max_new_tokens: int,
    ) -> None:
        from aotoolkit.tracing.activations import resolve_layers

        contracts = [oracle.contract for oracle in self.oracles.values()]
        trained = sorted({layer for contract in contracts for layer in contract.read_layers})
        offered = resolve_layers(trained if layers is None else layers, self.model.num_layers)
        recommended = [x for x in contracts[0].recommended.layers if x in offered]
        self.layers = LayerChoice(
            offered, chosen=recommended or [offered[len(offered) // 2]], trained=trained
        )
        self.tokens = TokenSelect(max_positions=max_positions)
        self.question = ipywidgets.Combobox(
            value=questions[0],
            options=list(questions),
            description="Question",
            placeholder="Ask anything, or clear the field to see the presets",
            continuous_update=False,
            style={"description_width": "5em"},
            layout={"width": "auto", "flex": "1 1 26em"},
        )
        self.max_new_tokens = ipywidgets.BoundedIntText(
            value=max_new_tokens,
            min=1,
            max=4096,
            description="Longest answer",
            tooltip="Most tokens of an answer",
            style={"description_width": "8em"},
            layout={"width": "13em"},
        )
        self.ask_button = ipywidgets.Button(
            description="Ask",
            icon="comment",
            tooltip="Ask about the chosen tokens and layers",
        )
        self.ask_button.on_click(lambda _: self.ask())
        for widget, trait in (
            (self.tokens, "selection"),
            (self.layers, "value"),
            (self.question, "value"),
            (self.adapter, "value"),
            (self.max_new_tokens, "value"),
        ):
            widget.observe(self._chosen, names=trait)

    def _make_results(self) -> None:
        self.answers = ipywidgets.HTML()
        self.grid_button = ipywidgets.Button(
            description="Fill the grid",
            icon="table",
            tooltip="Ask about each chosen layer and token alone",
            layout={"width": "auto"},
        )
        self.grid_button.on_click(lambda _: self.fill_grid())
        self.grid_oracle: Any = ipywidgets.Dropdown(
            options=list(self.oracles),
            description="Oracle",
            layout={"display": "none" if len(self.oracles) == 1 else "flex"},
        )
        self.grid = LayerTokenGrid()
        self._grid_box = ipywidgets.VBox()
        self._cell = ipywidgets.HTML()
        self._history_box = ipywidgets.VBox()
        self._code = ipywidgets.HTML()
        grid_tab = ipywidgets.VBox(
            [ipywidgets.HBox([self.grid_button, self.grid_oracle]), self._grid_box, self._cell]
        )
        self.tabs = ipywidgets.Tab(
            [self.answers, grid_tab, self._history_box, self._code],
            titles=["Answer", "Layer x token grid", "History", "Code"],
        )
        self.action_buttons = (self.ask_button, self.grid_button)
        self._look_busy(False)
        self._show_history()

    def _lay_out(self) -> None:
        self._about = " · ".join([self.model.name, *self.oracles])
        self._title = ipywidgets.HTML(self.title_html(self._about))
        row = {"flex_flow": "row wrap", "align_items": "center"}
        contracts = [oracle.contract for oracle in self.oracles.values()]
        one = all(contract.layers_per_prompt == "one" for contract in contracts)
        alone = "each chosen layer is asked about alone" if one else "about the chosen layers"
        self.children = [
            style_box(),
            self._title,
            ipywidgets.HBox(
                [step_html(1, "Prompt", "what the target model reads"), self.editor.kind],
                layout=row | {"justify_content": "space-between"},
            ),
            self.editor,
            ipywidgets.HBox(
                [
                    self.adapter,
                    look_again_button(self.refresh_adapters),
                    self.editor.add,
                    self.reply_button,
                ],
                layout=row,
            ),
            step_html(2, "Tokens", "those that the oracle is asked about"),
            self.tokens,
            step_html(3, "Question", alone),
            self.layers,
            ipywidgets.HBox([self.question, self.max_new_tokens], layout=row),
            ipywidgets.HBox([self.ask_button, self.stop_button, self.status], layout=row),
            self.tabs,
        ]

    # What is chosen

    def _encode(self, _change: Any = None) -> None:
        with self._choosing:
            self._prompt = None
            prompt = self.editor.value
            try:
                if not prompt:
                    raise _empty_prompt()
                encoded = self.model.encode(
                    prompt, add_generation_prompt=not ends_with_reply(prompt)
                )
            except AOToolkitError as error:
                self._prompt_error = error
                self.tokens.set_trait("selection", [])
                self.say_error(error)
            else:
                self.tokens.show(encoded, selection=self._first_selection(encoded))
                self._prompt = prompt
                if not self.busy:
                    self.say("")
            self._chosen()

    def _first_selection(self, encoded: "Encoded") -> list[int]:
        """The last message, or the last tokens of a text, to the end of the prompt."""
        begin = max(0, len(encoded) - _TOKENS_OF_A_TEXT)
        if encoded.messages:
            start = encoded.messages[-1].content_start
            begin = bisect.bisect_right([end for _, end in encoded.offsets], start)
        if self.tokens.max_positions is not None:
            begin = max(begin, len(encoded) - self.tokens.max_positions)
        return list(range(begin, len(encoded)))

    def _chosen(self, _change: Any = None) -> None:
        if self.adapter.index is None:
            self.adapter.index = 0  # ipywidgets takes the value None for "nothing is chosen"
        ready = bool(self.tokens.selection and self.layers.value and self.question.value.strip())
        self.ask_button.disabled = self.grid_button.disabled = not ready
        self._show_code()

    @property
    def request(self) -> Request:
        """What `ask` would ask now.

        Raises:
            AOToolkitError: The prompt is empty, or the model cannot be given it.
            QuestionError: There is no question, token or layer.
        """
        with self._choosing:
            if not self._prompt:
                raise self._prompt_error
            chosen = {
                "tokens": self.tokens.selection,
                "layers": self.layers.value,
                "question": self.question.value.strip(),
            }
            if missing := [name for name, value in chosen.items() if not value]:
                raise QuestionError(
                    f"Nothing is chosen as {' and '.join(missing)}. Choose, then ask."
                )
            return Request(
                prompt=self._prompt if isinstance(self._prompt, str) else tuple(self._prompt),
                adapter=self.adapter.value,
                layers=tuple(self.layers.value),
                positions=tuple(self.tokens.selection),
                question=self.question.value.strip(),
                oracles=tuple(self.oracles),
                max_new_tokens=self.max_new_tokens.value,
            )

    def use_again(self, number: int) -> None:
        """Chooses what a row of the history asked, without asking.

        Args:
            number: Of the row, from 1 on.

        Raises:
            QuestionError: There is no such row.
            UnknownAdapterError: Its adapter is not in the model any more.
        """
        if not 1 <= number <= len(self.history):
            raise QuestionError(
                f"There is no row {number} in the history, which has {len(self.history)}."
            )
        request = self.history[number - 1].request
        with self._choosing:
            try:
                self.adapter.value = request.adapter
            except TraitError as error:
                raise UnknownAdapterError(
                    f"Row {number} asked about the adapter {request.adapter!r}, which is not in "
                    "the model any more. Load it again, or choose another."
                ) from error
            self.editor.show(request.prompt)
            self.layers.show(request.layers)
            self.question.value = request.question
            self.max_new_tokens.value = request.max_new_tokens
            self.tokens.selection = list(request.positions)

    def _choose_again(self, number: int) -> None:
        try:
            self.use_again(number)
        except AOToolkitError as error:
            self.say_error(error)

    # What can be clicked

    def ask(self) -> None:
        """Asks the question about the chosen tokens and layers; the answer streams."""
        self._start(lambda request, stop: self._answer(request, stop), tab=0)

    def fill_grid(self) -> None:
        """Asks about each chosen layer and token alone."""
        oracle = self.grid_oracle.value
        self._start(lambda request, stop: self._fill(request, oracle, stop), tab=1)

    def write_reply(self) -> None:
        """Lets the chosen model write the next turn of the prompt."""
        prompt, adapter = self.editor.value, self.adapter.value
        if not prompt:
            self.say_error(_empty_prompt())
            return
        self._submit(lambda stop: self._reply(prompt, adapter, stop))

    def _start(self, job: Any, *, tab: int) -> None:
        try:
            request = self.request
        except AOToolkitError as error:
            self.say_error(error)
            return
        self.tabs.selected_index = tab
        self._submit(lambda stop: job(request, stop))

    # On the worker's thread

    def _answer(self, request: Request, stop: threading.Event) -> None:
        from aotoolkit.oracle.generation import Stopped

        begun = time.perf_counter()
        self.say("Reading activations …")
        acts = self.model.activations(request.prompt, **request.read_options)
        ends = {"stopping_criteria": [Stopped(stop)]}
        about = {name: asked_about(self.oracles[name], acts) for name in request.oracles}
        readings = {
            (name, part.layers): Reading(
                oracle=name,
                read=read_name(dataclasses.asdict(part.provenance)),
                layers=part.layers,
                positions=part.positions,
            )
            for name, parts in about.items()
            for part in parts
        }
        said = dict.fromkeys(readings, "")
        heading = asked_html(request.question)
        self.answers.value = heading  # what stood here is of another question
        painted = 0.0
        options: dict[str, Any] = request.ask_options | ends
        del options["confidence"]  # of a whole answer

        def paint(note: str, *, ended: bool = False) -> None:
            nonlocal painted
            cards = [
                streaming_html(readings[key], text, note=note, ended=ended)
                for key, text in said.items()
            ]
            self.answers.value = heading + cards_html(cards)
            painted = time.perf_counter()

        self.say("Answering …")
        answers: dict[str, tuple[Answer, ...]] = {}
        try:
            for name, parts in about.items():
                for part in parts:
                    pieces = self.oracles[name].stream(request.question, part, **options)
                    with contextlib.closing(pieces):
                        for piece in pieces:
                            said[name, part.layers] += piece
                            if time.perf_counter() - painted >= _SECONDS_BETWEEN_PAINTS:
                                paint("arriving …")
                            if stop.is_set():
                                break
                    if stop.is_set():
                        break
            if not stop.is_set():
                paint("asking again without the evidence …", ended=True)
                self.say("Asking the controls …")
                for name, parts in about.items():
                    answers[name] = tuple(
                        self.oracles[name].ask(
                            request.question, parts, **request.ask_options | ends
                        )
                    )
        except Exception:  # shown by the panel; no card may look as if more were to come
            paint("? Ended by an error", ended=True)
            raise
        seconds = time.perf_counter() - begun
        stopped = stop.is_set()
        asked = Asked(
            number=len(self.history) + 1,
            request=request,
            answers={} if stopped else answers,
            said={readings[key]: text for key, text in said.items()} if stopped else {},
            seconds=seconds,
        )
        self.history.append(asked)
        self.answers.value = heading + _answers_html(asked)
        self._show_history()
        self.say(f"{'Stopped' if stopped else 'Answered'} after {seconds:.1f} s.")

    def _fill(self, request: Request, oracle: str, stop: threading.Event) -> None:
        begun = time.perf_counter()
        self.say("Reading activations …")
        request = dataclasses.replace(request, oracles=(oracle,))
        acts = self.model.activations(request.prompt, **request.read_options)
        grid = LayerTokenGrid(
            layers=acts.layers,
            positions=acts.positions,
            tokens=acts.tokens,
            label=f"{request.question} ({oracle} reads {model_name(acts.adapter)})",
        )
        before, self.grid = self.grid, grid
        self.answer_grid, self._grid_request = None, request
        self._cell.value = ""
        self._grid_box.children = [grid]
        close_all(before)
        cells: dict[tuple[int, ...], Answer] = {}
        total = len(acts.layers) * len(acts.positions)

        def put(answer: "Answer") -> None:
            place = (answer.layers[0], answer.positions[0])
            cells[place] = answer
            grid.put_answer(*place, answer)
            if grid.cell == list(place):  # it was chosen before it was filled
                show_cell(place)
            self.say(f"{len(cells)} of {total} cells …")

        def show_cell(place: Sequence[int] | None) -> None:
            answer = cells.get(tuple(place or ()))
            self._cell.value = cards_html([answer_html(answer, oracle=oracle)] if answer else [])

        grid.observe(lambda change: show_cell(change.new), names="cell")
        self._show_code()
        self.answer_grid = self.oracles[oracle].ask_each(
            request.question, acts, on_answer=put, stop=stop, **request.grid_options
        )
        seconds = time.perf_counter() - begun
        if self.answer_grid.complete:
            self.say(f"{total} cells in {seconds:.1f} s. Click a cell for its controls.")
        else:
            self.say(f"Stopped after {len(cells)} of {total} cells.")

    def _reply(
        self, prompt: "str | Sequence[Message]", adapter: str | None, stop: threading.Event
    ) -> None:
        from aotoolkit.oracle.generation import Stopped

        name = model_name(adapter)
        self.say(f"The {name} is writing …" if adapter is None else f"{name} is writing …")
        before = prompt
        if ends_with_reply(prompt):
            before = prompt[:-1]  # its last reply is written anew
        reply = self.model.generate(
            before,
            adapter=adapter,
            max_new_tokens=_TOKENS_OF_A_REPLY,
            stopping_criteria=[Stopped(stop)],
        )
        if stop.is_set():
            self.say("Stopped.")
        elif self.editor.value != prompt:
            self.say("The prompt was changed meanwhile, so the reply to the old one is left out.")
        else:
            if before is not prompt:
                self.editor.show(before)
            self.editor.append_reply(reply)
            self.say(f"Written by: {name}.")

    # What is shown

    def _show_history(self) -> None:
        if self.closed:
            return  # nobody would close its rows
        rows: list[ipywidgets.Widget] = []
        for asked in reversed(self.history[-_ROWS_SHOWN:]):
            again = ipywidgets.Button(
                description="Use again",
                icon="repeat",
                tooltip=f"Choose what row {asked.number} asked",
                layout={"width": "9em", "flex": "none"},
            )
            again.on_click(lambda _, number=asked.number: self._choose_again(number))
            rows.append(ipywidgets.HBox([again, ipywidgets.HTML(_row_html(asked))]))
        if not rows:
            rows.append(ipywidgets.HTML('<div class="aop-status">Nothing was asked yet.</div>'))
        before, self._history_box.children = self._history_box.children, rows
        for row in before:
            close_all(row)

    def _show_code(self) -> None:
        self._code.value = f'<pre class="aop-code" tabindex="0">{html.escape(self.code())}</pre>'

    def code(self) -> str:
        """Python that asks what is chosen now, and fills the grid that was last filled.

        `model` is the panel's model; `oracle` its oracle, or `oracles` the mapping of several.
        """
        try:
            parts = [f"# ask\n{self.request.ask_code(self.oracles)}"]
        except AOToolkitError as error:
            parts = ["".join(f"# {line}\n" for line in str(error).splitlines())]
        if self._grid_request is not None:
            code = self._grid_request.grid_code(self.oracles)
            read = self._grid_request.read_code()
            if read in parts[0]:  # what both read need not be read twice
                code = code.removeprefix(read)
            parts.append(f"# fill the grid\n{code}")
        return "\n".join(parts)

    def to_dataframe(self) -> "pandas.DataFrame":
        """The history: a row for each answer, oldest first."""
        import pandas

        columns = (
            "number",
            "question",
            "oracle",
            "adapter",
            "layers",
            "positions",
            "answer",
            "supported",
            "unsupported_by",
            "confidence",
            "stopped",
            "seconds",
            "prompt",
        )
        rows = [
            {"number": asked.number, "seconds": asked.seconds, "stopped": asked.stopped}
            | {"prompt": asked.request.prompt, "question": asked.request.question}
            | row
            for asked in self.history
            for row in _answer_rows(asked)
        ]
        return pandas.DataFrame(rows, columns=list(columns))

    def static_html(self) -> str:
        """Prompt, what was chosen, the last answers, and the grid."""
        parts = [self.title_html(self._about), dialogue_html(self.editor.value or "")]
        parts.append(self.tokens.static_html())
        parts += self._asked_html()
        if self.answer_grid is not None:
            parts.append(self.grid.static_html())
        return "".join(parts)

    def page_parts(self) -> "list[FrontEnd | HasHTML | str]":
        """As `static_html`, with the widgets themselves, the whole history and the code."""
        about = self.title_html(self._about, name=False)
        parts: list[FrontEnd | HasHTML | str] = [about + dialogue_html(self.editor.value or "")]
        parts.append(self.tokens)
        parts += self._asked_html()
        if self.answer_grid is not None:
            parts.append(self.grid)
        if self.history:
            parts.append(f"<h2>History</h2>{_history_html(self.history)}")
        parts.append(f'<h2>Code</h2><pre class="aop-code">{html.escape(self.code())}</pre>')
        return parts

    def _asked_html(self) -> list[str]:
        if not self.history:
            return []
        asked = self.history[-1]
        shown = self.editor.value
        same = asked.request.prompt == (shown if isinstance(shown, str) else tuple(shown or ()))
        # What stands above may have been changed since.
        about = "" if same else f"<p>Asked about:</p>{dialogue_html(asked.request.prompt)}"
        return [f"<h2>{html.escape(asked.request.question)}</h2>{about}{_answers_html(asked)}"]


def _empty_prompt() -> PromptError:
    return PromptError("The prompt is empty. Write a turn, or a text.")


def _answers_html(asked: Asked) -> str:
    cards = [answer_html(one, oracle=name) for name, own in asked.answers.items() for one in own]
    note = "? Stopped before its controls were asked"
    cards += [
        streaming_html(reading, text, note=note, ended=True) for reading, text in asked.said.items()
    ]
    return cards_html(cards)


def _answer_rows(asked: Asked) -> list[dict[str, Any]]:
    """What the history says of each answer."""
    rows = [
        {
            "oracle": name,
            "adapter": answer.provenance["activations"]["adapter"],
            "layers": answer.layers,
            "positions": answer.positions,
            "answer": answer.text,
            "supported": answer.supported,
            "unsupported_by": answer.unsupported_by,
            "confidence": answer.confidence and answer.confidence.value,
        }
        for name, own in asked.answers.items()
        for answer in own
    ]
    return rows + [
        {
            "oracle": reading.oracle,
            "adapter": asked.request.adapter,
            "layers": reading.layers,
            "positions": reading.positions,
            "answer": text,
            "supported": None,
            "unsupported_by": (),
            "confidence": None,
        }
        for reading, text in asked.said.items()
    ]


def _history_html(history: Sequence[Asked]) -> str:
    """The whole history as a table, oldest first."""
    rows: list[tuple[object, ...]] = []
    for asked in history:
        before = (asked.number, _prompt_text(asked.request.prompt), asked.request.question)
        for name, own in asked.answers.items():
            for answer in own:
                read = (name, read_name(answer.provenance["activations"]))
                places = (_listed(answer.layers), ranges_text(answer.positions))
                sure = "" if answer.confidence is None else f"{answer.confidence.value:.2f}"
                rows.append((*before, *read, *places, answer.text, verdict_text(answer), sure))
        for reading, text in asked.said.items():
            places = (_listed(reading.layers), ranges_text(reading.positions))
            rows.append((*before, reading.oracle, reading.read, *places, text, "stopped", ""))
    asked_for = ("no.", "prompt", "question", "oracle", "reads", "layers", "tokens")
    return table_html((*asked_for, "answer", "supported", "confidence"), rows)


def _prompt_text(prompt: "str | Sequence[Message]") -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _row_html(asked: Asked) -> str:
    request = asked.request
    lines = [
        f"<b>{asked.number}. {html.escape(request.question)}</b> "
        f'<span class="aop-unknown">{html.escape(model_name(request.adapter))}, '
        f"tokens {ranges_text(request.positions)}, {asked.seconds:.1f} s</span>"
    ]
    for name, own in asked.answers.items():
        for answer in own:
            kind = {True: "supported", False: "unsupported", None: "unknown"}[answer.supported]
            lines.append(
                f"{html.escape(name)}, layer {_listed(answer.layers)}: {html.escape(answer.text)} "
                f'<span class="aop-{kind}">{html.escape(verdict_text(answer))}</span>'
            )
    lines += [
        f"{html.escape(reading.oracle)}: {html.escape(text)} (stopped)"
        for reading, text in asked.said.items()
    ]
    return "<br>".join(lines)
