"""What a panel asks, and the public calls that ask the same.

A request is frozen at the click. What an answer shows later is taken from it, or from the answer
itself, so a control that is changed in the meantime changes the next request and never this one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aotoolkit.tracing.encoding import ends_with_reply
from aotoolkit.widgets.python_code import arguments_code, list_code

if TYPE_CHECKING:
    from aotoolkit.oracle import Oracle
    from aotoolkit.tracing import Activations

# Cells of a grid in one batch: few, so that the first ones come soon.
GRID_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question about some activations, to one oracle or several.

    Attributes:
        prompt: Chat messages, or a text.
        adapter: Whose activations are read; None for the base.
        layers: The blocks that are read.
        positions: The positions in the prompt.
        question: What is asked.
        oracles: Names of the oracles in the panel.
        max_new_tokens: Longest answer.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    adapter: str | None
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    question: str
    oracles: tuple[str, ...]
    max_new_tokens: int

    @property
    def read_options(self) -> dict[str, Any]:
        """What `TracedModel.activations` is given beside the prompt."""
        options: dict[str, Any] = {
            "layers": list(self.layers),
            "adapter": self.adapter,
            "positions": list(self.positions),
        }
        if not isinstance(self.prompt, str):
            options["add_generation_prompt"] = not ends_with_reply(self.prompt)
        return options

    @property
    def ask_options(self) -> dict[str, Any]:
        """What `Oracle.ask` is given: the positions as chosen, and the same answer each time."""
        return {
            "window": "all",
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,
            "confidence": "log_probability",
        }

    @property
    def grid_options(self) -> dict[str, Any]:
        """What `Oracle.ask_each` is given."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,
            "max_batch": GRID_BATCH,
        }

    def ask_code(self, oracles: "Mapping[str, Oracle]") -> str:
        """Python that reads and asks: `model`, and `oracle` or `oracles`, are the panel's.

        It leaves `answer`, or `answers`: a list by layer where each layer is asked about alone; by
        name where there are several oracles.
        """
        lines: list[str] = []
        options = arguments_code(self.ask_options)
        if len(self.oracles) > 1:
            lines.append("answers = {}")
        for name in self.oracles:
            alone = layers_alone(oracles[name], self.layers)
            about = "[acts.layer(layer) for layer in acts.layers]" if alone else "acts"
            if len(oracles) == 1:
                target, asked = "answers" if alone else "answer", "oracle"
            else:
                target = f"answers[{name!r}]" if len(self.oracles) > 1 else "answer"
                asked = f"oracles[{name!r}]"
            lines.append(f"{target} = {asked}.ask(\n    {self.question!r},\n    {about},{options})")
        return self.read_code() + "\n".join(lines) + "\n"

    def grid_code(self, oracles: "Mapping[str, Oracle]") -> str:
        """Python that reads and asks about each layer and token alone; it leaves `grid`."""
        asked = "oracle" if len(oracles) == 1 else f"oracles[{self.oracles[0]!r}]"
        options = arguments_code(self.grid_options)
        call = f"grid = {asked}.ask_each(\n    {self.question!r},\n    acts,{options})"
        return f"{self.read_code()}{call}\n"

    def read_code(self) -> str:
        """Python that reads; it leaves `acts`."""
        if isinstance(self.prompt, str):
            prompt = f"prompt = {self.prompt!r}"
        else:
            prompt = f"prompt = {list_code(dict(turn) for turn in self.prompt)}"
        read = f"acts = model.activations(\n    prompt,{arguments_code(self.read_options)})"
        return f"{prompt}\n{read}\n"


def layers_alone(oracle: "Oracle", layers: Sequence[int]) -> bool:
    """Whether an oracle is asked about each of these layers alone, as its contract has it."""
    return len(layers) > 1 and oracle.contract.layers_per_prompt == "one"


def asked_about(oracle: "Oracle", acts: "Activations") -> "list[Activations]":
    """What an oracle is asked about: all layers in one prompt, or each alone."""
    if layers_alone(oracle, acts.layers):
        return [acts.layer(layer) for layer in acts.layers]
    return [acts]
