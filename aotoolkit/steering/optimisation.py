"""The loop that all ways of steering share: steps, curve, best weights, Stop and going on later.

Draws of a step depend on the seed and the step alone, so a run that goes on from its state takes
the same steps as one that was never stopped.
"""

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from aotoolkit.atomic import replacing
from aotoolkit.errors import CorruptedFileError, NonFiniteError, RunMismatchError, SteeringError
from aotoolkit.steering.result import LossPoint

STATE_FILE = "steering_state.safetensors"
_ADAM = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop runs.

    Attributes:
        steps: of the optimiser (Adam, constant rate, gradients clipped to norm 1).
        lr: learning rate.
        eval_every: steps between two points of the curve.
        folder: where the state is kept, so that the same call goes on; None keeps none.
        identity: what a state must have been made with to be gone on from.
        progress: shows a progress bar.
    """

    steps: int
    lr: float
    eval_every: int
    folder: Path | None
    identity: Mapping[str, Any]
    progress: bool

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eval_every < 1:
            raise SteeringError(
                f"steps is {self.steps} and eval_every {self.eval_every}; both must be 1 or more."
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SteeringError(f"lr is {self.lr}; give a positive number, such as 1e-4.")


@dataclass(frozen=True, kw_only=True)
class LoopOutcome:
    """What a loop did; the weights are those of `best_step`."""

    losses: tuple[LossPoint, ...]
    best_step: int
    steps: int
    stopped: bool


def optimise(
    parameters: Sequence[nn.Parameter],
    *,
    step: Callable[[int], float],
    evaluate: Callable[[], float],
    settings: LoopSettings,
    stop: threading.Event | None,
    on_point: Callable[[LossPoint], None] | None,
) -> LoopOutcome:
    """Runs the steps and leaves the best weights in the parameters.

    Args:
        parameters: what is trained.
        step: number of the step -> its loss, with the gradients in the parameters.
        evaluate: loss over the same data at each point.
        settings: how many steps, and so on.
        stop: ends the loop when it is set, from another thread or from `on_point`; so does an
            interrupt. What was best so far is kept.
        on_point: is told each new point of the curve.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        RunMismatchError, CorruptedFileError: the folder holds a state that does not fit.
    """
    optimiser = torch.optim.Adam(parameters, lr=settings.lr)
    state = _State(parameters, optimiser, settings)
    state.resume()
    stopped = False

    def point() -> None:
        found = LossPoint(step=state.done, loss=evaluate())
        state.add(found)
        if on_point is not None:
            on_point(found)

    with tqdm(
        total=settings.steps,
        initial=state.done,
        desc="steering",
        unit="step",
        disable=not settings.progress,
    ) as bar:
        try:
            if not state.losses:
                point()
            while state.done < settings.steps:
                if stop is not None and stop.is_set():
                    stopped = True
                    break
                optimiser.zero_grad(set_to_none=True)
                loss = step(state.done)
                if not math.isfinite(loss):
                    raise NonFiniteError(
                        f"The loss is {loss} at step {state.done}. Lower lr, or run the model in "
                        "bfloat16 or float32 instead of float16."
                    )
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                state.done += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
                if state.done % settings.eval_every == 0 or state.done == settings.steps:
                    point()
        except KeyboardInterrupt:
            # Before the first point there is no best to give.
            if stop is None or not state.losses:
                raise
            stopped = True
    with torch.no_grad():
        for parameter, best in zip(parameters, state.best, strict=True):
            parameter.copy_(best)
    return LoopOutcome(
        losses=tuple(state.losses),
        best_step=min(state.losses, key=lambda found: found.loss).step,
        steps=state.done,
        stopped=stopped,
    )


class _State:
    """Where a run is, in memory and on disk."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimiser: torch.optim.Adam,
        settings: LoopSettings,
    ) -> None:
        self.parameters = parameters
        self.optimiser = optimiser
        self.settings = settings
        self.done = 0
        self.losses: list[LossPoint] = []
        self.best = [parameter.detach().clone() for parameter in parameters]

    @property
    def _path(self) -> Path | None:
        return None if self.settings.folder is None else self.settings.folder / STATE_FILE

    def add(self, found: LossPoint) -> None:
        """A new point of the curve: keeps the weights where it is the lowest; writes the state."""
        if not math.isfinite(found.loss):
            raise NonFiniteError(
                f"The loss over all pairs is {found.loss} at step {found.step}. Lower lr, or run "
                "the model in bfloat16 or float32 instead of float16."
            )
        if not self.losses or found.loss < min(one.loss for one in self.losses):
            self.best = [parameter.detach().clone() for parameter in self.parameters]
        self.losses.append(found)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"now.{index}"] = parameter.detach()
            tensors[f"best.{index}"] = self.best[index]
            for name, value in self.optimiser.state.get(parameter, {}).items():
                if name in _ADAM:
                    tensors[f"{name}.{index}"] = value
        described = {
            "done": self.done,
            "losses": [asdict(one) for one in self.losses],
            "identity": dict(self.settings.identity),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as temporary:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                metadata={"state": json.dumps(described)},
            )

    def resume(self) -> None:
        """Goes on from the state in the folder, if there is one.

        Raises:
            RunMismatchError: it is of a run with other settings.
            CorruptedFileError: it cannot be read.
        """
        if self._path is None or not self._path.is_file():
            return
        try:
            with safe_open(str(self._path), framework="pt") as file:
                described = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CorruptedFileError(
                f"{self._path} cannot be read: {error}. Delete it to begin anew."
            ) from error
        wanted = json.loads(json.dumps(dict(self.settings.identity)))
        if described["identity"] != wanted:
            keys = described["identity"].keys() | wanted.keys()
            other = [key for key in keys if described["identity"].get(key) != wanted.get(key)]
            raise RunMismatchError(
                f"{self.settings.folder} holds a run with other settings ({', '.join(other)}). "
                "Choose another folder, or delete it."
            )
        self.done = described["done"]
        self.losses = [LossPoint(**one) for one in described["losses"]]
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"now.{index}"])
                self.best[index] = tensors[f"best.{index}"].to(parameter)
                if f"step.{index}" in tensors:
                    self.optimiser.state[parameter] = {
                        name: tensors[f"{name}.{index}"].to(
                            "cpu" if name == "step" else parameter.device
                        )
                        for name in _ADAM
                    }
