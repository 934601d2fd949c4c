"""What a steering panel runs, and the public calls that run the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aotoolkit.tracing.encoding import ends_with_reply
from aotoolkit.widgets.python_code import arguments_code, list_code

if TYPE_CHECKING:
    from aotoolkit.oracle.contract import Window
    from aotoolkit.steering import Behaviour
    from aotoolkit.steering.result import Method
    from aotoolkit.tracing.encoding import Prompt


@dataclass(frozen=True, kw_only=True)
class SteerRequest:
    """One run, as it was chosen when it was asked for.

    Attributes:
        behaviour: The pairs; None where they are still to be made of the sentence.
        sentence: What they are made of; empty for pairs that were written.
        questions: What the oracle is asked to make them.
        prompts: What the target reads meanwhile.
        method: As all that follow: see `aotoolkit.steering.steer`.
        layers: The blocks that are read.
        window: The last tokens that the oracle is told.
        steps: Of the optimiser.
        lr: Learning rate.
        batch_size: Pairs of prompt and question in a step.
        noise: Random offset of the vectors in each step, as a share of their length.
        rank: Of the adapter.
        alpha: Of it.
        gradient_checkpointing: Less memory, more time.
        eval_every: Steps between two points of the curve.
        seed: Of weights and draws.
        max_new_tokens: Longest reply.
    """

    behaviour: "Behaviour | None"
    sentence: str
    questions: tuple[str, ...]
    prompts: "tuple[Prompt, ...]"
    method: "Method"
    layers: tuple[int, ...]
    window: "Window | None"
    steps: int
    lr: float
    batch_size: int
    noise: float
    rank: int
    alpha: float
    gradient_checkpointing: bool
    eval_every: int
    seed: int
    max_new_tokens: int

    @property
    def estimate_options(self) -> dict[str, Any]:
        """What `estimate` is given beside model, oracle, pairs and prompts."""
        return {
            "method": self.method,
            "layers": list(self.layers),
            "window": self.window,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    @property
    def steer_options(self) -> dict[str, Any]:
        """What `steer` is given beside model, oracle, pairs and prompts."""
        return self.estimate_options | {
            "steps": self.steps,
            "lr": self.lr,
            "noise": self.noise,
            "alpha": self.alpha,
            "eval_every": self.eval_every,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
        }

    def code(self, *, adapter: str, strength: float) -> str:
        """Python that does the same: `model` and `oracle` are the panel's; it leaves `result`."""
        names = ["estimate", "steer"]
        if self.behaviour is None:
            names.insert(0, "describe_behaviour")
        parts = [
            f"from aotoolkit.steering import {', '.join(names)}\n",
            f"prompts = {list_code(self.prompts)}",
            self._behaviour_code(),
            _call("print(estimate", "behaviour", self.estimate_options) + ")",
            _call("result = steer", "behaviour", self.steer_options | {"adapter": adapter}),
        ]
        # The result's prompts are those that get a reply.
        if not all(ends_with_reply(prompt) for prompt in self.prompts):
            options = {"scale": strength, "max_new_tokens": self.max_new_tokens}
            asked = f"\n    list(result.prompts),{arguments_code(options)}"
            parts.append(f"replies = result.generate({asked})")
        return "\n".join(parts) + "\n"

    def _behaviour_code(self) -> str:
        if self.behaviour is None:
            about = f"    model,\n    oracle,\n    {self.sentence!r},\n    prompts,"
            return (
                f"questions = {list_code(self.questions)}\nbehaviour = describe_behaviour(\n"
                f"{about}\n    questions=questions,\n    layer={self.layers[-1]},\n)"
            )
        pairs = [(pair.question, pair.answer) for pair in self.behaviour.pairs]
        told = ascii(self.behaviour.sentence)
        made = "" if self.behaviour.sentence is None else f"# made of the sentence {told}\n"
        return f"{made}behaviour = {list_code(pairs)}"


def _call(name: str, behaviour: str, options: Mapping[str, Any]) -> str:
    about = f"    model,\n    oracle,\n    {behaviour},\n    prompts,"
    return f"{name}(\n{about}{arguments_code(options)})"
