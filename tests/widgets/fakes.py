"""A model and an oracle that answer at once, or wait until they are let go on. No weights."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from aotoolkit.errors import UnknownAdapterError
from aotoolkit.oracle import Answer, AnswerGrid
from aotoolkit.oracle.confidence import log_probability
from aotoolkit.tracing import Activations, Encoded, Provenance

SOON = 10.0
WORDS = ["It", " is", " a", " fake", "."]


class FakeModel:
    """Tokens are characters; activations say which adapter was read."""

    name = "fake <b>model</b>"
    adapter_names = ("red", "blue", "oracle")
    tokenizer = SimpleNamespace(chat_template="a template")
    num_layers = 8

    def __init__(self) -> None:
        self.reads: list[str | None] = []
        self.fail: Exception | None = None

    def resolve_layer(self, layer: int) -> int:
        return layer % self.num_layers

    def adapter_digest(self, name: str) -> str:
        if name not in self.adapter_names:
            raise UnknownAdapterError(f"no adapter {name!r}")
        return name * 4

    def encode(self, prompt: Any, *, add_generation_prompt: bool = True) -> Encoded:
        text = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        return Encoded(
            token_ids=tuple(map(ord, text)),
            tokens=tuple(text),
            offsets=tuple((i, i + 1) for i in range(len(text))),
            text=text,
            chat=not isinstance(prompt, str),
        )

    def activations(
        self,
        prompt: Any,
        *,
        layers: Any,
        adapter: str | None = None,
        positions: Any = None,
        add_generation_prompt: bool = True,
    ) -> Activations:
        if self.fail is not None:
            raise self.fail
        self.reads.append(adapter)
        encoded = self.encode(prompt)
        positions = tuple(range(len(encoded)) if positions is None else positions)
        return Activations(
            vectors=torch.ones(len(layers), len(positions), 3),
            layers=tuple(layers),
            context_ids=encoded.token_ids,
            positions=positions,
            token_ids=tuple(encoded.token_ids[p] for p in positions),
            tokens=tuple(encoded.tokens[p] for p in positions),
            offsets=tuple(encoded.offsets[p] for p in positions),
            text=encoded.text,
            provenance=Provenance(
                model=self.name,
                revision=None,
                base_digest="0",
                num_layers=self.num_layers,
                adapter=adapter,
                adapter_digest=None,
                chat_template_digest=None,
                dtype="float32",
                source="fake",
                versions={},
            ),
        )

    def generate(self, prompt: Any, *, adapter: str | None = None, **options: Any) -> str:
        if self.fail is not None:
            raise self.fail
        return f"I am {adapter}."


class FakeOracle:
    """Says whose activations it was given.

    Attributes:
        gate: While it is not set, a stream pauses after its first word.
        paused: Set when a stream pauses.
        stopped: Streams that were closed before their end.
    """

    adapter = "oracle"

    def __init__(self, *, layers_per_prompt: str = "one", text: str | None = None) -> None:
        self.contract = SimpleNamespace(
            read_layers=(2, 4, 6),
            layers_per_prompt=layers_per_prompt,
            recommended=SimpleNamespace(layers=()),
        )
        self.text = text
        self.gate = threading.Event()
        self.gate.set()
        self.paused = threading.Event()
        self.stopped = 0

    def _says(self, acts: Activations) -> str:
        return self.text or f"{acts.adapter} at {list(acts.layers)}"

    def stream(self, question: str, acts: Activations, **options: Any) -> Iterator[str]:
        stops = [criterion._stop for criterion in options["stopping_criteria"]]
        done = False
        try:
            for number, word in enumerate(self._says(acts).split(" ")):
                yield word + " "
                while number == 0 and not self.gate.is_set():
                    self.paused.set()
                    if any(stop.is_set() for stop in stops):
                        return
                    self.gate.wait(0.01)
            done = True
        finally:
            self.stopped += not done

    def ask(self, question: str, acts: Any, **options: Any) -> Any:
        if isinstance(acts, Activations):
            return self._answer(question, acts)
        return [self._answer(question, one) for one in acts]

    def ask_each(
        self, question: str, acts: Activations, *, on_answer: Any, stop: threading.Event, **_: Any
    ) -> AnswerGrid:
        cells = {}
        for layer in acts.layers:
            for place, position in enumerate(acts.positions):
                if cells and not self.gate.is_set():
                    self.paused.set()
                    assert stop.wait(SOON)
                if stop.is_set():
                    break
                answer = self._answer(question, acts.layer(layer)[place])
                cells[layer, position] = answer
                on_answer(answer)
        return AnswerGrid(
            question=question,
            layers=acts.layers,
            positions=acts.positions,
            tokens=acts.tokens,
            cells=cells,
        )

    def _answer(self, question: str, acts: Activations) -> Answer:
        return Answer(
            question=question,
            text=self._says(acts),
            controls={"zero": "nothing", "base": self.text or "something"},
            log_prob=-0.5,
            num_tokens=2,
            layers=acts.layers,
            positions=acts.positions,
            tokens=acts.tokens,
            provenance={"activations": {"adapter": acts.adapter}, "oracle": {}},
            confidence=log_probability(-0.5, 2),
        )
