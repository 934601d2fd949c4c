"""A steered target: an adapter or vectors, how they came about, and what they do."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from aotoolkit.atomic import put_in_place
from aotoolkit.errors import SteeringError, UnknownAdapterError
from aotoolkit.steering.behaviour import Behaviour
from aotoolkit.steering.vector import VECTOR_FILE, SteeringVector
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Prompt, is_batch

Method = Literal["single_layer", "layerwise", "vector"]
_ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors", "README.md"})


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """A point of the loss curve: mean -log p of a wanted answer's token, after `step` steps.

    Attributes:
        step: 0 is the unsteered target.
        loss: over the same pairs, prompts and offsets (of `noise`) at each point.
    """

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeringResult:
    """A steered target.

    Attributes:
        model: the target, in which the adapter is.
        adapter: name of its adapter; None for vectors.
        vector: the vectors; None for an adapter.
        method: how it was steered; None where it was not through an oracle.
        layers: what was read.
        behaviour: what it was steered to; None where it was not through an oracle.
        losses: the curve.
        best_step: the point of the curve that was kept: the lowest.
        steps: how many were run.
        stopped: whether it was stopped before all were.
        prompts: some of the prompts.
        before: the unsteered target's replies to them.
        after: the steered one's.
    """

    model: TracedModel
    adapter: str | None
    vector: SteeringVector | None
    method: Method | None
    layers: tuple[int, ...]
    behaviour: Behaviour | None
    losses: tuple[LossPoint, ...]
    best_step: int
    steps: int
    stopped: bool
    prompts: tuple[Prompt, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __post_init__(self) -> None:
        assert (self.adapter is None) != (self.vector is None), "one of the two"

    @contextlib.contextmanager
    def live(self, scale: float = 1.0) -> Iterator[str | None]:
        """Inside, the target is steered with some strength; gives the adapter to pass to calls.

            with result.live(0.5) as adapter:
                model.generate(prompt, adapter=adapter)

        A scale of 0 is the unsteered target, 1 the steered one; above and below 0 extrapolate.
        Holds the model's lock.

        Raises:
            UnknownAdapterError: the adapter was removed from the model.
        """
        with self.model.lock, contextlib.ExitStack() as stack:
            if self.vector is not None:
                stack.enter_context(self.vector.live(self.model, scale=scale))
            else:
                stack.enter_context(self._scaled(scale))
            yield self.adapter

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        scale: float = 1.0,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> Any:
        """The steered target's reply, or replies to a list of prompts.

        Args:
            prompt: as in `TracedModel.generate`.
            scale: strength.
            max_new_tokens: the most tokens of a reply.
            **options: as in `TracedModel.generate`.
        """
        with self.live(scale) as adapter:
            return self.model.generate(
                prompt, adapter=adapter, max_new_tokens=max_new_tokens, **options
            )

    def save(self, folder: str | os.PathLike[str], *, scale: float = 1.0) -> Path:
        """Writes an ordinary PEFT adapter (or the vectors), at some strength; returns the folder.

        It takes nothing of this package to use the adapter:
        `PeftModel.from_pretrained(base, folder)`.

        Raises:
            FileExistsError: the folder holds something else.
            UnknownAdapterError: the adapter was removed from the model.
        """
        target = Path(folder)
        refuse_other_files(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as parent:
            made = Path(parent) / "new"
            made.mkdir()
            if self.vector is None:
                self._write_adapter(made, scale)
            else:
                scaled = {layer: scale * one for layer, one in self.vector.vectors.items()}
                dataclasses.replace(self.vector, vectors=scaled).save(made)
            put_in_place(made, target)
        return target

    def remove(self) -> None:
        """Takes the adapter out of the model, which then is as it was before."""
        if self.adapter is not None:
            self.model.delete_adapter(self.adapter)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON has it."""
        pairs = None if self.behaviour is None else self.behaviour.pairs
        return {
            "method": self.method,
            "layers": list(self.layers),
            "adapter": self.adapter,
            "pairs": None if pairs is None else [dataclasses.asdict(pair) for pair in pairs],
            "sentence": None if self.behaviour is None else self.behaviour.sentence,
            "losses": [dataclasses.asdict(point) for point in self.losses],
            "best_step": self.best_step,
            "steps": self.steps,
            "stopped": self.stopped,
            "replies": [
                {"prompt": prompt, "before": before, "after": after}
                for prompt, before, after in zip(self.prompts, self.before, self.after, strict=True)
            ],
        }

    def _layers_of_adapter(self) -> list[LoraLayer]:
        assert self.adapter is not None, "vectors have no adapter"
        if self.adapter not in self.model.adapter_names:
            raise UnknownAdapterError(
                f"The adapter {self.adapter!r} of this result is not in the model any more; load "
                "it from where it was saved: model.load_adapter(name, folder)."
            )
        return [
            module
            for module in self.model.hf_model.modules()
            if isinstance(module, LoraLayer) and self.adapter in module.scaling
        ]

    @contextlib.contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        layers = self._layers_of_adapter()
        assert self.adapter is not None, "vectors have no adapter"
        before = [layer.scaling[self.adapter] for layer in layers]
        try:
            for layer, own in zip(layers, before, strict=True):
                layer.scaling[self.adapter] = scale * own
            yield
        finally:
            for layer, own in zip(layers, before, strict=True):
                layer.scaling[self.adapter] = own

    def _write_adapter(self, folder: Path, scale: float) -> None:
        peft_model = self.model.peft_model
        if peft_model is None or not self._layers_of_adapter():
            raise SteeringError(f"The adapter {self.adapter!r} adapts no layer of the model.")
        with self.model.lock:
            weights = get_peft_model_state_dict(
                peft_model, adapter_name=str(self.adapter), save_embedding_layers=False
            )
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
                folder / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
            config: Any = dataclasses.replace(peft_model.peft_config[str(self.adapter)])
        config.base_model_name_or_path = self.model.name
        config.inference_mode = True
        if scale != 1:
            config.lora_alpha = scale * config.lora_alpha
        config.save_pretrained(str(folder))


def refuse_other_files(folder: Path) -> None:
    """Refuses a folder that a result would not be saved into.

    Raises:
        FileExistsError: it is a file, or holds something else than a result.
    """
    known = _ADAPTER_FILES | {VECTOR_FILE}
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a folder.")
    if folder.exists() and {path.name for path in folder.iterdir()} - known:
        raise FileExistsError(
            f"{folder} holds other files too, so it is not replaced; choose another folder."
        )


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[Prompt, ...]:
    """One or several prompts as a tuple of them.

    Raises:
        SteeringError: there is none.
    """
    many: Any = prompts if is_batch(prompts) else [prompts]
    if not prompts:
        raise SteeringError(
            "There are no prompts; give those on which the target shall behave in the new way."
        )
    return tuple(many)
