"""The only place that talks to nnsight.

nnsight compiles the source of each `with model.trace()` block. One such block for the whole
package, which runs a Python callable, lets everything else be ordinary Python that works from a
notebook, from stdin and under `%%time`, where a trace of its own would not.

Importing nnsight patches `torch.Tensor.backward`: `with context(): loss.backward()` written on
*one line* then does nothing. Write such code on two lines.
"""

import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import nnsight
import torch
from nnsight import Envoy, NNsight
from nnsight.intervention.interleaver import EarlyStopException, OutOfOrderError
from torch import nn

from aotoolkit.errors import HookNotFiredError


class LazyEnvoy(Envoy):
    """An envoy that mirrors a child module when it is first asked for.

    nnsight mirrors and instruments every module of a model (about 2 us per module and forward,
    25 % on deep LoRA models); we touch only the blocks.
    """

    def _add_envoy(self, name: str, module: nn.Module) -> Any:
        if self._module._modules.get(name) is module:
            return None
        return super()._add_envoy(name, module)


class LazyNNsight(LazyEnvoy, NNsight):
    """`nnsight.NNsight` with lazy mirroring."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, envoys=LazyEnvoy)  # pyright: ignore[reportArgumentType]


def run_trace(envoy: Envoy, read: Callable[[Any], Any], /, **inputs: Any) -> Any:
    """Run `envoy` on `inputs` with `read(tracer)` interleaved, without gradients.

    Returns what `read` returns, or None where `read` called `tracer.stop()`: a read that stops
    early hands its result over in an object of the caller's (which does not work remotely).

    Raises:
        HookNotFiredError: the forward ended without running a module that `read` asked for.
    """
    try:
        with torch.no_grad(), envoy.trace(**inputs) as tracer:
            box = nnsight.save([])
            box.append(read(tracer))
    except OutOfOrderError as error:
        raise HookNotFiredError(
            f"A block whose output was asked for did not run: {error}. Was it replaced, or "
            "skipped, after the model was wrapped? Wrap it again: TracedModel(model, tokenizer)."
        ) from error
    return box[0] if box else None  # pyright: ignore[reportPossiblyUnboundVariable]  (nnsight binds it)


def stop_early(tracer: Any, stopped: list[BaseException]) -> NoReturn:
    """End the forward here; afterwards call `forget(stopped)`."""
    try:
        tracer.stop()
    except EarlyStopException as stop:
        stopped.append(stop)
        raise
    raise AssertionError("unreachable: tracer.stop() raises")


def forget(stopped: list[BaseException]) -> None:
    """Free what the ended forward still holds.

    nnsight ends a forward by an exception that it keeps in a reference cycle, and with it every
    frame of the forward and all tensors in them: on a GPU, gigabytes until the garbage collector
    happens to run.
    """
    for stop in stopped:
        traceback.clear_frames(stop.__traceback__)
        stop.__traceback__ = None
    stopped.clear()
