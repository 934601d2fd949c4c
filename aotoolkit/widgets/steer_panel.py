"""Steering by hand: write a behaviour, see its pairs, run, watch the loss, talk to both models."""

import dataclasses
import html
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from aotoolkit.errors import AOToolkitError, SteeringError
from aotoolkit.steering.behaviour import QUESTIONS, Behaviour
from aotoolkit.steering.steering import LEARNING_RATES
from aotoolkit.widgets.answer_view import cards_html, table_html
from aotoolkit.widgets.layer_choice import LayerChoice
from aotoolkit.widgets.lines import pairs_of, pairs_text, prompts_of, prompts_text, questions_of
from aotoolkit.widgets.loss_curve import curve_html
from aotoolkit.widgets.panel import Panel, step_html, style_box
from aotoolkit.widgets.steer_request import SteerRequest

if TYPE_CHECKING:
    from aotoolkit.oracle import Oracle
    from aotoolkit.oracle.contract import Window
    from aotoolkit.steering import LossPoint, SteeringEstimate, SteeringResult
    from aotoolkit.steering.result import Method
    from aotoolkit.tracing import TracedModel
    from aotoolkit.tracing.encoding import Message, Prompt
    from aotoolkit.widgets.base import FrontEnd
    from aotoolkit.widgets.export import HasHTML

PROMPTS = (
    "Hello, who are you?",
    "What do you like to talk about?",
    "Tell me something.",
    "Give me a hint.",
)
METHODS: "Mapping[Method, str]" = {
    "single_layer": "an adapter (LoRA) on the blocks up to one layer, where the oracle reads",
    "layerwise": "the same adapter, with a loss at each layer that moves the blocks before it",
    "vector": "no adapter: one vector for each layer, added at every token; the cheapest",
}
# A vector is moved in the units of the residual stream, an adapter in those of weights.
_AXIS = "nats a token"
_CAPTION = (
    "How unlikely the oracle finds the wanted answers. That is what the oracle sees, and it is "
    "convinced early: what the model does is in its replies."
)
_RECOMMENDED = "recommended"
_LABEL = {"description_width": "8em"}
_WIDE = {"width": "auto"}
_ROW = {"flex_flow": "row wrap", "align_items": "center"}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One message to both models.

    Attributes:
        text: What was written.
        unsteered_prompt: What the unsteered model was given: the text, and in a dialogue that goes
            on what was said before.
        steered_prompt: What the steered one was given.
        unsteered: The unsteered model's reply; None until it is there.
        steered: Strength -> the steered model's reply.
        strength: The one that was chosen last.
    """

    text: str
    unsteered_prompt: "Prompt"
    steered_prompt: "Prompt"
    unsteered: str | None
    steered: Mapping[float, str]
    strength: float


class SteerPanel(Panel):
    """Steers a model by an oracle's gradients, and shows it beside the unsteered one.

    What is clicked can be called: `show_pairs`, `estimate_memory`, `run`, `stop`, `chat`, `save`.
    They return at once, and `wait` waits. While a run is under way the others are refused; `stop`
    keeps its best so far. The tab "Code" holds the public calls that do the same.

    Base and oracle stay bit for bit as they are. The result's adapter stays in the model, switched
    off, until the next run has succeeded; save it, or call `result.remove()`.

    Attributes:
        model: The target model.
        oracle: The oracle.
        sentence: The behaviour as a sentence (`sentence.value`), where `kind.value` says so.
        pairs: The pairs, a line each.
        prompts: What the target reads while it is steered, a line each.
        layers: What the oracle reads; `layers.show([6])`.
        strength: Scales the steered model in the chat and in what is saved.
        losses: The curve of the last run.
        memory: What the last estimate said; None before the first.
        result: The last run's result; None before the first.
        exchanges: What was said to both models, oldest first.
        saved: Where the result was saved last; None before the first.
    """

    title = "Steer a model"

    def __init__(
        self,
        model: "TracedModel",
        oracle: "Oracle | Sequence[Oracle]",
        *,
        behaviour: "str | Behaviour | Mapping[str, str] | Iterable[tuple[str, str]]" = "",
        prompts: "Sequence[str | Sequence[Message]]" = PROMPTS,
        questions: Sequence[str] = QUESTIONS,
        method: "Method" = "single_layer",
        layers: "Sequence[int | float] | None" = None,
        window: "Window | None" = None,
        steps: int = 100,
        lr: float | None = None,
        batch_size: int = 8,
        noise: float = 0.0,
        rank: int = 16,
        alpha: float = 32,
        gradient_checkpointing: bool = False,
        eval_every: int = 10,
        seed: int = 0,
        max_new_tokens: int = 48,
        max_strength: float = 2.0,
    ) -> None:
        """Shows the panel.

        Args:
            model: The target model.
            oracle: Through which it is steered; several take turns.
            behaviour: A sentence, or question-answer pairs, that stand there at first.
            prompts: What the target reads; texts are user turns where it has a chat template.
            questions: What the oracle is asked to make pairs of a sentence; use what it knows.
            method: As all that follow but the last: see `aotoolkit.steering.steer`.
            layers: What is read; by default what `steer` would.
            window: The last tokens that the oracle is told.
            steps: Of the optimiser.
            lr: Learning rate; by default that of `steer`, and a larger one for vectors.
            batch_size: Pairs of prompt and question in a step.
            noise: Random offset of the vectors in each step, as a share of their length.
            rank: Of the adapter.
            alpha: Of it.
            gradient_checkpointing: Less memory, more time.
            eval_every: Steps between two points of the curve.
            seed: Of weights and draws.
            max_new_tokens: Longest reply.
            max_strength: Where the slider ends.

        Raises:
            SteeringError: The behaviour is neither, or the method is unknown or reads other layers.
            LayerError: A layer that the model does not have.
        """
        super().__init__("steer-panel")
        self.model = model
        self.oracle = oracle
        self.losses: tuple[LossPoint, ...] = ()
        self.memory: SteeringEstimate | None = None
        self.result: SteeringResult | None = None
        self.exchanges: list[Exchange] = []
        self.saved: Path | None = None
        self._run_under_way: object | None = None
        self._reply_under_way: object | None = None
        self._can_chat = bool(getattr(model.tokenizer, "chat_template", None))
        self._made_of: tuple[str, tuple[str, ...]] | None = None  # what the pairs were made of
        self._measured: tuple[object, ...] | None = None  # what the memory was measured with
        self._rates = dict(LEARNING_RATES)
        self._pairs_of_kind: dict[str, str] = {}
        self._make_behaviour(behaviour, prompts, questions)
        self._make_settings(
            method,
            layers,
            window,
            {
                "steps": steps,
                "batch_size": batch_size,
                "rank": rank,
                "eval_every": eval_every,
                "seed": seed,
                "max_new_tokens": max_new_tokens,
            },
            lr=lr,
            noise=noise,
            alpha=alpha,
            gradient_checkpointing=gradient_checkpointing,
        )
        self._make_results(max_strength)
        self._lay_out()
        self._look_busy(False)
        self._chosen()
        self._show_curve()
        self._show_exchanges()

    # The controls

    def _make_behaviour(
        self,
        behaviour: Any,
        prompts: "Sequence[str | Sequence[Message]]",
        questions: Sequence[str],
    ) -> None:
        written = None if isinstance(behaviour, str) else Behaviour.of(behaviour)
        sentence = behaviour if written is None else written.sentence
        self.kind: Any = ipywidgets.ToggleButtons(
            options=[("Sentence", "sentence"), ("Question-answer pairs", "pairs")],
            value="pairs" if sentence is None else "sentence",
            tooltips=[
                "A system prompt, of which the oracle makes the pairs",
                "What the oracle shall answer about the steered model",
            ],
            tooltip="Kind of behaviour",
            style={"button_width": "auto"},
        )
        self.sentence = ipywidgets.Textarea(
            value=sentence or "",
            description="Sentence",
            placeholder="Always talk about boats.",
            rows=2,
            continuous_update=False,
            style=_LABEL,
            layout=_WIDE,
        )
        self.questions = ipywidgets.Textarea(
            value=prompts_text(questions),
            description="Questions",
            tooltip="What the oracle is asked of the model that is told the sentence, one a line",
            rows=4,
            continuous_update=False,
            style=_LABEL,
            layout=_WIDE,
        )
        self.pairs_button = ipywidgets.Button(
            description="Show the pairs",
            icon="list",
            tooltip="Tell the model the sentence, and ask the oracle the questions",
            layout=_WIDE,
        )
        self.pairs_button.on_click(lambda _: self.show_pairs())
        self.pairs = ipywidgets.Textarea(
            value=pairs_text(written.pairs) if written else "",
            description="Pairs",
            placeholder="What is the secret word? => The tiger.",
            tooltip="One pair a line: question => wanted answer",
            rows=8,
            continuous_update=False,
            style=_LABEL,
            layout=_WIDE,
        )
        self.prompts = ipywidgets.Textarea(
            value=prompts_text(prompts),
            description="Prompts",
            tooltip="One user turn a line; a whole chat as JSON",
            rows=5,
            continuous_update=False,
            style=_LABEL,
            layout=_WIDE,
        )
        self._pairs_note, self._prompts_note = ipywidgets.HTML(), ipywidgets.HTML()
        if written is not None and sentence is not None:
            self._made_of = self._sentence()

    def _make_settings(
        self,
        method: "Method",
        layers: "Sequence[int | float] | None",
        window: "Window | None",
        numbers: Mapping[str, int],
        *,
        lr: float | None,
        noise: float,
        alpha: float,
        gradient_checkpointing: bool,
    ) -> None:
        from aotoolkit.steering.oracles import as_oracles
        from aotoolkit.steering.steering import layers_to_read

        chosen = layers_to_read(self.model, self.oracle, method, layers)
        self._layers_of = {
            name: layers_to_read(self.model, self.oracle, name, None) for name in METHODS
        } | {method: chosen}
        trained = sorted(as_oracles(self.oracle)[0].contract.read_layers)
        offered = sorted({*trained, *(x for own in self._layers_of.values() for x in own)})
        self.layers = LayerChoice(
            offered, chosen=chosen, trained=trained, label_width=_LABEL["description_width"]
        )
        self.method: Any = ipywidgets.Dropdown(
            options=list(METHODS),
            value=method,
            description="Method",
            style=_LABEL,
            layout={"width": "20em"},
        )
        self._method_note = ipywidgets.HTML(layout={"margin": "2px 2px 2px 1em"})
        if lr is not None:
            self._rates[method] = lr
        self.lr = self._number(ipywidgets.FloatText, self._rates[method], "Learning rate")
        labels = {
            "steps": ("Steps", "Steps of the optimiser"),
            "batch_size": ("Batch", "Pairs of prompt and question in a step"),
            "rank": ("Rank", "Rank of the adapter"),
            "eval_every": ("Point every", "Steps between two points of the curve"),
            "seed": ("Seed", "Of the adapter's first weights and of what each step draws"),
            "max_new_tokens": ("Longest reply", "Most tokens of a reply"),
        }
        self.numbers: dict[str, Any] = {
            name: self._number(ipywidgets.IntText, value, *labels[name])
            for name, value in numbers.items()
        }
        self.noise = self._number(
            # A bounded one would change what was given; `steer` says what is wrong with it.
            ipywidgets.FloatText,
            noise,
            "Noise",
            "Random offset of the vectors in each step, as a share of their length",
        )
        self.alpha = self._number(ipywidgets.FloatText, alpha, "Alpha", "Alpha of the adapter")
        windows: list[Any] = [_RECOMMENDED, "all", 1, 5, 10, 50]
        value = _RECOMMENDED if window is None else window
        self.window: Any = ipywidgets.Dropdown(
            options=[
                (f"last {one}" if isinstance(one, int) else one, one)
                for one in dict.fromkeys([*windows, value])
            ],
            value=value,
            description="Window",
            tooltip="How many of the last tokens of a prompt the oracle is told",
            style=_LABEL,
            layout={"width": "18em"},
        )
        self.gradient_checkpointing = ipywidgets.Checkbox(
            value=gradient_checkpointing,
            description="Less memory, more time (gradient checkpointing)",
            indent=False,
            layout={"width": "auto", "margin": "2px 2px 2px 2em"},
        )
        self.method.observe(self._method_chosen, names="value")
        self.kind.observe(self._kind_chosen, names="value")
        for widget in (
            self.sentence,
            self.questions,
            self.pairs,
            self.prompts,
            self.layers,
            self.lr,
            self.noise,
            self.alpha,
            self.window,
            self.gradient_checkpointing,
            *self.numbers.values(),
        ):
            widget.observe(self._chosen, names="value")

    def _number(self, kind: Any, value: float, label: str, tooltip: str = "") -> Any:
        return kind(
            value=value,
            description=label,
            tooltip=tooltip or label,
            style=_LABEL,
            layout={"width": "15em"},
        )

    def _make_results(self, max_strength: float) -> None:
        self.estimate_button = ipywidgets.Button(
            description="Estimate memory",
            icon="calculator",
            tooltip="Measure what a run will need, on one prompt",
            layout=_WIDE,
        )
        self.estimate_button.on_click(lambda _: self.estimate_memory())
        self.run_button = ipywidgets.Button(
            description="Run", icon="play", tooltip="Steer the model to these pairs"
        )
        self.run_button.on_click(lambda _: self.run())
        self.progress = ipywidgets.IntProgress(
            description="Progress", layout={"display": "none", "width": "20em"}
        )
        self._memory, self._curve, self._replies, self._saved, self._code = (
            ipywidgets.HTML() for _ in range(5)
        )
        self.message = ipywidgets.Text(
            description="Message",
            placeholder="Say something to both models",
            style=_LABEL,
            layout={"width": "auto", "flex": "1 1 26em"},
        )
        self.message.on_msg(self._told)
        self.send_button = ipywidgets.Button(
            description="Send", icon="comment", tooltip="Let both models reply"
        )
        self.send_button.on_click(lambda _: self._send_message())
        self.strength = ipywidgets.FloatSlider(
            value=1.0,
            min=0.0,
            max=max_strength,
            step=0.1,
            description="Strength",
            tooltip="Scales the adapter: 0 is the unsteered model, 1 the one that was trained",
            continuous_update=False,
            readout_format=".1f",
            style=_LABEL,
            layout={"width": "30em", "max_width": "100%"},
        )
        self.strength.observe(self._strength_chosen, names="value")
        self.go_on = ipywidgets.Checkbox(
            value=False,
            description="Go on with the dialogue",
            tooltip="Each model is shown what was said before, with its own replies",
            indent=False,
            disabled=not self._can_chat,
            layout={"width": "auto", "margin": "2px 2px 2px 2em"},
        )
        self._exchanges = ipywidgets.HTML()
        self.folder = ipywidgets.Text(
            value="steered",
            description="Folder",
            continuous_update=False,
            style=_LABEL,
            layout={"width": "30em", "max_width": "100%"},
        )
        self.save_button = ipywidgets.Button(
            description="Save",
            icon="save",
            tooltip="Write the adapter at the chosen strength, as PEFT reads it",
        )
        self.save_button.on_click(lambda _: self.save())
        self.action_buttons = (self.run_button, self.send_button)

    def _lay_out(self) -> None:
        more = ipywidgets.Accordion(
            [
                ipywidgets.VBox(
                    [
                        ipywidgets.HBox(
                            [self.numbers[name] for name in ("batch_size", "eval_every", "seed")],
                            layout=_ROW,
                        ),
                        ipywidgets.HBox(
                            [self.numbers["rank"], self.alpha, self.numbers["max_new_tokens"]],
                            layout=_ROW,
                        ),
                        ipywidgets.HBox(
                            [self.window, self.noise, self.gradient_checkpointing], layout=_ROW
                        ),
                    ]
                )
            ],
            titles=["More settings"],
        )
        chat = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.message, self.send_button], layout=_ROW),
                ipywidgets.HBox([self.strength, self.go_on], layout=_ROW),
                self._exchanges,
            ]
        )
        save = ipywidgets.VBox(
            [ipywidgets.HBox([self.folder, self.save_button], layout=_ROW), self._saved]
        )
        self.tabs = ipywidgets.Tab(
            [self._curve, chat, self._replies, save, self._code],
            titles=["Loss", "Chat with both", "Before and after", "Save", "Code"],
        )
        self._title = ipywidgets.HTML(self.title_html(self.model.name))
        self._from_sentence = ipywidgets.VBox(
            [self.sentence, self.questions, ipywidgets.HBox([self.pairs_button])]
        )
        self.children = [
            style_box(),
            self._title,
            ipywidgets.HBox(
                [step_html(1, "Behaviour", "what the oracle shall see in the model"), self.kind],
                layout=_ROW | {"justify_content": "space-between"},
            ),
            self._from_sentence,
            self.pairs,
            self._pairs_note,
            step_html(2, "Prompts", "what the model reads while it is steered"),
            self.prompts,
            self._prompts_note,
            step_html(3, "Steering", "what is trained, and how long"),
            ipywidgets.HBox([self.method, self._method_note], layout=_ROW),
            self.layers,
            ipywidgets.HBox([self.numbers["steps"], self.lr], layout=_ROW),
            more,
            self._memory,
            ipywidgets.HBox(
                [
                    self.run_button,
                    self.stop_button,
                    self.estimate_button,
                    self.progress,
                    self.status,
                ],
                layout=_ROW,
            ),
            self.tabs,
        ]

    # What is chosen

    @property
    def request(self) -> SteerRequest:
        """What `run` would run now.

        Raises:
            SteeringError: There is no behaviour, prompt or layer, or a line is no pair.
            PromptError, QuestionError: A line is no prompt or question.
        """
        return self._request()

    def _request(self, *, anew: bool = False) -> SteerRequest:
        """What `run` would run now; with `anew`, pairs are made again of the sentence."""
        from aotoolkit.steering.result import as_prompts
        from aotoolkit.steering.steering import layers_to_read

        sentence, questions = self._sentence()
        if self.kind.value == "sentence" and not sentence:
            raise SteeringError(
                "There is no behaviour. Write a sentence, such as Always talk about boats., or "
                "question-answer pairs."
            )
        if self.kind.value == "sentence" and not questions:
            raise SteeringError(
                "There are no questions to make pairs of the sentence. Write one a line."
            )
        return SteerRequest(
            behaviour=None if anew and sentence else self._behaviour(),
            sentence=sentence,
            questions=questions,
            prompts=as_prompts([self._as_prompt(one) for one in prompts_of(self.prompts.value)]),
            method=self.method.value,
            layers=layers_to_read(
                self.model, self.oracle, self.method.value, list(self.layers.value)
            ),
            window=None if self.window.value == _RECOMMENDED else self.window.value,
            lr=self.lr.value,
            noise=self.noise.value,
            alpha=self.alpha.value,
            gradient_checkpointing=self.gradient_checkpointing.value,
            **{name: field.value for name, field in self.numbers.items()},
        )

    def _sentence(self) -> tuple[str, tuple[str, ...]]:
        """The sentence and the questions about it; nothing where pairs are written."""
        if self.kind.value == "pairs":
            return "", ()
        return self.sentence.value.strip(), tuple(questions_of(self.questions.value))

    def _behaviour(self) -> Behaviour | None:
        """The pairs that stand there; None where they are still to be made of the sentence."""
        if self.kind.value == "pairs":
            return Behaviour.of(pairs_of(self.pairs.value))
        if self._made_of != self._sentence() or not self.pairs.value.strip():
            return None
        pairs = Behaviour.of(pairs_of(self.pairs.value)).pairs
        return Behaviour(pairs, self.sentence.value.strip())

    def _as_prompt(self, prompt: Any) -> Any:
        if isinstance(prompt, str) and self._can_chat:
            return [_turn("user", prompt)]
        return prompt

    def _kind_chosen(self, change: Any) -> None:
        # Pairs that were written are no pairs of a sentence, and are there again later.
        self._pairs_of_kind[change.old] = self.pairs.value
        kept = self._pairs_of_kind.get(change.new, "")
        if kept or change.new == "sentence":
            self.pairs.value = kept
        self._chosen()

    def _method_chosen(self, change: Any) -> None:
        self._rates[change.old] = self.lr.value
        self.lr.value = self._rates[change.new]
        self.layers.show(self._layers_of[change.new])
        self._chosen()

    def _chosen(self, _change: Any = None) -> None:
        if self.error and not self.busy:
            self.say("")  # it was about what was there before
        by_sentence = self.kind.value == "sentence"
        self._from_sentence.layout.display = "" if by_sentence else "none"
        shown = not by_sentence or self.pairs.value.strip()
        self.pairs.layout.display = "" if shown else "none"
        self._method_note.value = _note(METHODS[self.method.value])
        self._pairs_note.value = self._pairs_html()
        self._prompts_note.value = self._prompts_html()
        self._show_memory()
        self._show_code()

    def _pairs_html(self) -> str:
        try:
            behaviour = self._behaviour()
        except AOToolkitError as error:
            blank = not self.pairs.value.strip()
            return _note("Write a pair a line." if blank else str(error), error=not blank)
        if behaviour is not None:
            made = (
                "" if behaviour.sentence is None else ", made of the sentence; change them freely"
            )
            return _note(f"{_counted(len(behaviour.pairs), 'pair')}{made}.")
        if not self.pairs.value.strip():
            return _note("The oracle makes the pairs, now or when you press Run.")
        return _note("Sentence or questions were changed: Show the pairs, or Run, makes new ones.")

    def _prompts_html(self) -> str:
        try:
            count = len(prompts_of(self.prompts.value))
        except AOToolkitError as error:
            return _note(str(error), error=True)
        return _note(f"{_counted(count, 'prompt')}. A chat of several turns is written as JSON.")

    # What can be clicked

    def show_pairs(self) -> None:
        """Makes the pairs of the sentence anew, and measures the memory of a run with them."""
        self._start(self._prepare, anew=True)

    def estimate_memory(self) -> None:
        """Measures what a run will need; makes the pairs first where there are none."""
        self._start(self._prepare)

    def run(self) -> None:
        """Steers the model; says beforehand what memory it takes."""
        self._start(self._steer, steers=True)

    def chat(self, text: str) -> None:
        """Lets both models reply to a text."""
        self._chat(text)

    def save(self) -> None:
        """Saves the result at the chosen strength in the chosen folder; see `saved`."""
        folder, strength = self.folder.value.strip(), self.strength.value
        if not folder:
            self.say_error(SteeringError("There is no folder to save in. Write its name."))
        elif strength == 0:
            self.say_error(
                SteeringError("At strength 0 nothing is steered. Move the slider, then save.")
            )
        elif self._has_result():
            self.tabs.selected_index = 3
            self._start_job(lambda _: self._save(folder, strength))

    def _told(self, _widget: Any, content: Mapping[str, Any], _buffers: Any) -> None:
        if content.get("event") == "submit":  # Enter
            self._send_message()

    def _send_message(self) -> None:
        if self._chat(self.message.value):
            self.message.value = ""

    def _chat(self, text: str) -> bool:
        strength, go_on = self.strength.value, self.go_on.value
        if not text.strip():
            self.say_error(SteeringError("The message is empty. Write what both models are told."))
            return False
        if not self._has_result():
            return False
        self.tabs.selected_index = 1
        return self._start_job(
            lambda stop: self._reply(text.strip(), strength, go_on, stop), replies=True
        )

    def _has_result(self) -> bool:
        if self.result is None:
            self.say_error(SteeringError("There is no steered model yet. Run first."))
        return self.result is not None

    def _strength_chosen(self, _change: Any) -> None:
        self._show_code()
        # A reply that is under way takes the new strength up when it is done.
        waiting = self._steering or (self._reply_under_way is not None and self.busy)
        if self.result is not None and self.exchanges and not waiting:
            strength = self.strength.value
            self._start_job(lambda stop: self._reply_again(strength, stop))

    def _start(self, job: Any, *, anew: bool = False, steers: bool = False) -> None:
        try:
            request = self._request(anew=anew)
        except AOToolkitError as error:
            self.say_error(error)
        else:
            self._start_job(lambda stop: job(request, stop), steers=steers)

    def _start_job(self, job: Any, *, steers: bool = False, replies: bool = False) -> bool:
        """Submits a job, unless a run is under way, which no other job may replace."""
        if self._steering:
            self.say_error(SteeringError("A run is under way. Wait for its end, or stop it."))
            return False

        def whole(stop: threading.Event) -> None:
            try:
                job(stop)
            finally:
                if self._run_under_way is whole:
                    self._run_under_way = None
                if self._reply_under_way is whole:
                    self._reply_under_way = None

        self._run_under_way = whole if steers else None
        self._reply_under_way = whole if replies else None
        self._submit(whole)
        return True

    @property
    def _steering(self) -> bool:
        # Busy as well: a run that was stopped before it began leaves no trace.
        return self._run_under_way is not None and self.busy

    # On the worker's thread

    def _prepare(self, request: SteerRequest, stop: threading.Event) -> Behaviour | None:
        """The pairs, and the memory of a run with them; None where it was stopped."""
        from aotoolkit.steering import describe_behaviour, estimate

        behaviour = request.behaviour
        if behaviour is None:
            self.say("The oracle makes the pairs …")
            behaviour = describe_behaviour(
                self.model,
                self.oracle,
                request.sentence,
                request.prompts,
                questions=request.questions,
                layer=request.layers[-1],
            )
            self._made_of = (request.sentence, request.questions)
            if self.kind.value == "sentence":
                self.pairs.value = pairs_text(behaviour.pairs)
            else:  # it was changed meanwhile, and what is written now stays
                self._pairs_of_kind["sentence"] = pairs_text(behaviour.pairs)
            self._chosen()
        if not stop.is_set():
            self.say("Measuring the memory …")
            self.memory = estimate(
                self.model, self.oracle, behaviour, request.prompts, **request.estimate_options
            )
            self._measured = _measured_with(request, behaviour)
            self._show_memory()
        self.say("Stopped." if stop.is_set() else "Ready to run.")
        return None if stop.is_set() else behaviour

    def _steer(self, request: SteerRequest, stop: threading.Event) -> None:
        from aotoolkit.steering import steer

        behaviour = self._prepare(request, stop)
        if behaviour is None:
            return
        self.losses = ()
        self.tabs.selected_index = 0
        self.progress.max, self.progress.value = request.steps, 0
        self.progress.layout.display = "flex"
        self.say("Measuring the loss of the unsteered model …")
        begun = time.perf_counter()

        def point(found: "LossPoint") -> None:
            self.losses = (*self.losses, found)
            self.progress.value = found.step
            self._show_curve(request.steps)
            each = (time.perf_counter() - begun) / max(1, found.step)
            left = f", about {each * (request.steps - found.step):.0f} s left" if found.step else ""
            self.say(f"Step {found.step} of {request.steps}: loss {found.loss:.3f}{left}.")

        result = steer(
            self.model,
            self.oracle,
            behaviour,
            request.prompts,
            **request.steer_options,
            adapter=self._free_name(),
            stop=stop,
            on_point=point,
            progress=False,
        )
        # Not before: a run that fails leaves the result before it as it is.
        before, self.result = self.result, result
        if before is not None and before.adapter in self.model.adapter_names:
            before.remove()
        self.exchanges, self.saved, self._saved.value = [], None, ""
        self._show_exchanges()
        self._replies.value = self._replies_html()
        self._show_code()
        lowest = min(point.loss for point in result.losses)
        ended = f"Stopped after {result.steps} of" if result.stopped else "Done:"
        self.say(
            f"{ended} {request.steps} steps, {time.perf_counter() - begun:.0f} s. Kept: step "
            f"{result.best_step}, loss {result.losses[0].loss:.3f} → {lowest:.3f}."
        )

    def _reply(self, text: str, strength: float, go_on: bool, stop: threading.Event) -> None:
        last = self.exchanges[-1] if go_on and self.exchanges else None
        one = Exchange(
            text=text,
            unsteered_prompt=self._next_turn(
                text, last and (last.unsteered_prompt, last.unsteered)
            ),
            steered_prompt=self._next_turn(
                text, last and (last.steered_prompt, last.steered[last.strength])
            ),
            unsteered=None,
            steered={},
            strength=strength,
        )
        try:
            self.say("The unsteered model replies …")
            self._show_exchanges(one)
            said = self._generate(one.unsteered_prompt, 0.0, stop)
            one = dataclasses.replace(one, unsteered=said)
            self._show_exchanges(one)
            self.say("The steered model replies …")
            said = self._generate(one.steered_prompt, strength, stop)
            if not stop.is_set():
                self.exchanges.append(dataclasses.replace(one, steered={strength: said}))
        finally:
            self._show_exchanges()
        self.say("Stopped." if stop.is_set() else "Both replied.")
        if not stop.is_set() and self.strength.value != strength:
            self._reply_again(self.strength.value, stop)

    def _next_turn(self, text: str, before: Any) -> Any:
        """What a model is given: the text, after a prompt and what it replied to it."""
        if not self._can_chat:
            return text
        earlier = [] if before is None else [*before[0], _turn("assistant", before[1])]
        return [*earlier, _turn("user", text)]

    def _reply_again(self, strength: float, stop: threading.Event) -> None:
        one = self.exchanges[-1]
        if strength not in one.steered:
            self.say(f"The steered model replies at strength {strength:g} …")
            said = self._generate(one.steered_prompt, strength, stop)
            if stop.is_set():
                self.say("Stopped.")
                return
            one = dataclasses.replace(one, steered={**one.steered, strength: said})
        self.exchanges[-1] = dataclasses.replace(one, strength=strength)
        self._show_exchanges()
        self.say(f"Replied at strength {strength:g}.")

    def _generate(self, prompt: "Prompt", strength: float, stop: threading.Event) -> str:
        from aotoolkit.oracle.generation import Stopped

        options: dict[str, Any] = {
            "max_new_tokens": self.numbers["max_new_tokens"].value,
            "stopping_criteria": [Stopped(stop)],
        }
        if strength == 0:
            return self.model.generate(prompt, **options)
        assert self.result is not None, "there is no button without a result"
        return self.result.generate(prompt, scale=strength, **options)

    def _save(self, folder: str, strength: float) -> None:
        assert self.result is not None, "there is no button without a result"
        self.say("Saving …")
        self.saved = self.result.save(folder, scale=strength).resolve()
        self._saved.value = _saved_html(self.saved, strength, adapter=self.result.vector is None)
        self.say(f"Saved at strength {strength:g} in {self.saved}.")

    def _free_name(self) -> str:
        """A name that no adapter of the model has."""
        taken, number = self.model.adapter_names, 1
        while (name := "steered" if number == 1 else f"steered_{number}") in taken:
            number += 1
        return name

    def _look_busy(self, busy: bool) -> None:
        super()._look_busy(busy)
        steers = busy and self._run_under_way is not None
        for button in (self.run_button, self.estimate_button, self.pairs_button):
            button.disabled = steers
        for widget in (self.send_button, self.strength, self.save_button):
            widget.disabled = steers or self.result is None

    def _idle(self) -> None:
        self.progress.layout.display = "none"
        super()._idle()

    # What is shown

    def _show_memory(self) -> None:
        if self.memory is None:
            self._memory.value = _note("Memory: not measured yet. Run says it before it begins.")
            return
        try:
            request = self.request
            now = request.behaviour and _measured_with(request, request.behaviour)
        except AOToolkitError:
            now = None
        text = f"Memory: {self.memory}."
        if now != self._measured:
            text += " Settings were changed since."
        if too_large := self.memory.total_bytes > self.memory.available_bytes:
            text += (
                " That is more than there is: choose a smaller batch or rank, or tick less memory."
            )
        self._memory.value = _note(text, error=too_large)

    def _show_curve(self, steps: int | None = None) -> None:
        if not self.losses:
            self._curve.value = _note("Nothing was run yet.")
            return
        end = self.losses[-1].step if steps is None else steps
        curve = curve_html(self.losses, steps=max(1, end), axis=_AXIS)
        self._curve.value = f"{_note(_CAPTION)}{curve}"

    def _show_exchanges(self, under_way: Exchange | None = None) -> None:
        self._exchanges.value = self._exchanges_html(under_way)

    def _exchanges_html(self, under_way: Exchange | None = None) -> str:
        shown = [*self.exchanges, *([under_way] if under_way else [])]
        if shown:
            return "".join(map(_exchange_html, reversed(shown)))
        if self.result is None:
            return _note("There is no steered model yet: Run makes it.")
        return _note("Nothing was said yet.")

    def _replies_html(self) -> str:
        if self.result is None:
            return _note("There is no steered model yet.")
        rows = [
            (self._prompt_name(prompt), before, after)
            for prompt, before, after in zip(
                self.result.prompts, self.result.before, self.result.after, strict=True
            )
        ]
        about = _note("Replies to the prompts: unsteered, and steered at strength 1.")
        return about + table_html(("prompt", "unsteered", "steered"), rows)

    def _prompt_name(self, prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])

    def code(self) -> str:
        """Python that does what is chosen now; `model` and `oracle` are the panel's."""
        try:
            request = self.request
        except AOToolkitError as error:
            return "".join(f"# {line}\n" for line in str(error).splitlines())
        return request.code(adapter=self._free_name(), strength=self.strength.value)

    def _show_code(self) -> None:
        self._code.value = f'<pre class="aop-code" tabindex="0">{html.escape(self.code())}</pre>'

    def static_html(self) -> str:
        """What it was steered to, the curve, and what both models said."""
        return self.title_html(self.model.name) + "".join(self._report())

    def page_parts(self) -> "list[FrontEnd | HasHTML | str]":
        """As `static_html`, with the code."""
        return [
            self.title_html(self.model.name, name=False),
            *self._report(),
            f'<h2>Code</h2><pre class="aop-code">{html.escape(self.code())}</pre>',
        ]

    def _report(self) -> list[str]:
        result = self.result
        if result is None:
            return [self._curve.value]
        assert result.behaviour is not None, "a panel steers through an oracle"
        pairs = [(pair.question, pair.answer) for pair in result.behaviour.pairs]
        told = result.behaviour.sentence
        parts = ["<h2>Behaviour</h2>", "" if told is None else f"<p>{html.escape(told)}</p>"]
        parts.append(table_html(("question", "wanted answer"), pairs))
        # Of this result: what is drawn beside may be of a run that came after it.
        curve = curve_html(result.losses, steps=max(1, result.losses[-1].step), axis=_AXIS)
        parts.append(f"<h2>Loss</h2>{curve}")
        if result.prompts:
            parts.append(f"<h2>Before and after</h2>{self._replies_html()}")
        if self.exchanges:
            parts.append(f"<h2>Chat with both</h2>{self._exchanges_html()}")
        return parts


def _measured_with(request: SteerRequest, behaviour: Behaviour) -> tuple[object, ...]:
    """What decides an estimate."""
    return (behaviour.pairs, str(request.prompts), str(request.estimate_options))


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _note(text: str, *, error: bool = False) -> str:
    return f'<div class="aop-status{" aop-error" if error else ""}">{html.escape(text)}</div>'


def _exchange_html(one: Exchange) -> str:
    said = one.steered.get(one.strength)
    verdict = ""
    if said is not None:
        verdict = "= the same reply" if said == one.unsteered else "≠ another reply"
    others = [
        (f"{strength:g}", text)
        for strength, text in sorted(one.steered.items())
        if strength != one.strength
    ]
    cards = [
        _card("unsteered", one.unsteered),
        _card(
            f"steered, strength {one.strength:g}",
            said,
            f'<div class="aop-verdict aop-unknown">{verdict}</div>'
            + (table_html(("strength", "the steered model says"), others) if others else ""),
        ),
    ]
    return f'<div class="aop-step">{html.escape(one.text)}</div>{cards_html(cards)}'


def _card(name: str, text: str | None, below: str = "") -> str:
    """What a model said; None while it has not."""
    waiting = " aop-waiting" if text is None else ""
    said = html.escape(text or "") or ("" if text is None else "<i>(nothing)</i>")
    return (
        f'<div class="aop-card"><div class="aop-card-head"><b>{html.escape(name)}</b></div>'
        f'<div class="aop-answer{waiting}">{said}</div>{below}</div>'
    )


def _saved_html(path: Path, strength: float, *, adapter: bool) -> str:
    """Where it is, and how to load it."""
    if adapter:
        code = (
            "from peft import PeftModel\n"
            f"PeftModel.from_pretrained(base, {str(path)!r})  # base: the model of transformers\n"
            "# or here\n"
            f'model.load_adapter("saved", {str(path)!r})'
        )
    else:
        code = (
            "from aotoolkit.steering import SteeringVector\n"
            f"with SteeringVector.load({str(path)!r}).live(model):\n"
            '    model.generate("...")'
        )
    what = "An ordinary PEFT adapter" if adapter else "Vectors"
    names = ", ".join(sorted(one.name for one in path.iterdir()))
    return (
        f"<div>{what}, at strength {strength:g}: <code>{html.escape(str(path))}</code></div>"
        f'{_note(names)}<pre class="aop-code" tabindex="0">{html.escape(code)}</pre>'
    )
