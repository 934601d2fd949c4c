"""Steering by vectors: one for each of some blocks, added to the residual stream after it."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aotoolkit.atomic import replacing
from aotoolkit.errors import CorruptedFileError, IncompatibleActivationsError
from aotoolkit.tracing import TracedModel

VECTOR_FILE = "steering_vector.safetensors"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """Vectors to add at every token.

    Attributes:
        vectors: block -> `d`, float32 on the CPU.
        base_digest: of the base that they are for.
    """

    vectors: Mapping[int, Float[Tensor, " d"]]
    base_digest: str

    @contextlib.contextmanager
    def live(self, model: TracedModel, *, scale: float = 1.0) -> Iterator[None]:
        """Inside, every forward of the model has the vectors added, times `scale`.

        Holds the model's lock.

        Raises:
            IncompatibleActivationsError: the vectors are for another base.
        """
        if not model.has_base_digest(self.base_digest):
            raise IncompatibleActivationsError(
                f"The steering vectors are for the base {self.base_digest[:12]}, the model "
                f"{model.name!r} is {model.base_digest[:12]}. Steer that model anew."
            )
        with model.lock, contextlib.ExitStack() as stack:
            for layer, vector in self.vectors.items():
                handle = model.blocks[layer].register_forward_hook(_adding(scale * vector))
                stack.callback(handle.remove)
            yield

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the vectors into a folder; returns it."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tensors = {str(layer): vector.contiguous() for layer, vector in self.vectors.items()}
        with replacing(target / VECTOR_FILE) as temporary:
            save_file(tensors, temporary, metadata={"base": json.dumps(self.base_digest)})
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            CorruptedFileError: there is no such file, or it is none of ours.
        """
        path = Path(folder) / VECTOR_FILE
        try:
            with safe_open(str(path), framework="pt") as file:
                base = json.loads((file.metadata() or {})["base"])
                vectors = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CorruptedFileError(
                f"{path} holds no steering vectors: {error}. Give a folder that "
                "SteeringResult.save wrote."
            ) from error
        return cls(vectors, base)


def _adding(vector: Tensor) -> Any:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + vector.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook
