"""The oracle's prompt and injection with every adapter off, and the proof that they are.

In published code the row "original model" ran with the target's adapter live, so that the organism
read itself (switching an adapter on and not off again goes unnoticed). Here the logits are
compared with those of the base's own layers, run around PEFT.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from aotoolkit.errors import AdapterStateError
from aotoolkit.evals.arms import Kind, ask_items
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.oracle import Oracle
from aotoolkit.tracing import TracedModel

_PROOF_TOKENS = 16


class UntrainedOracle:
    """The base, asked as the oracle is: same prompt, same injection, no training."""

    kind: Kind = "baseline"

    def __init__(
        self,
        oracle: Oracle,
        *,
        name: str = "untrained oracle",
        max_new_tokens: int = 32,
        **options: Any,
    ) -> None:
        """An untrained oracle.

        Args:
            oracle: Whose contract and transform are used.
            name: As it stands in tables.
            max_new_tokens: Longest answer.
            **options: Of `Oracle.ask`; without them greedy, at the coefficient of training.
        """
        self.oracle = Oracle(
            oracle.model,
            None,
            oracle.contract,
            transform=oracle.transform,
            tokenizer=oracle.tokenizer,
        )
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.options = options

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`.

        Raises:
            AdapterStateError: An adapter takes part although all are switched off.
        """
        with self.oracle.model.lock:
            prove_adapters_off(self.oracle.model)
            return ask_items(
                self.oracle,
                items,
                [item.activations for item in items],
                arm=self.name,
                max_new_tokens=self.max_new_tokens,
                **self.options,
            )


def prove_adapters_off(model: TracedModel) -> None:
    """Compares the base's logits with those of its own layers, run around PEFT.

    Raises:
        AdapterStateError: They differ, so an adapter takes part.
    """
    ids = torch.arange(min(_PROOF_TOKENS, model.config.vocab_size), device=model.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with model.inference(None):
        switched_off = model.hf_model(**inputs).logits
        with _around_adapters(model.hf_model):
            base = model.hf_model(**inputs).logits
    if not torch.equal(switched_off, base):
        gap = float((switched_off - base).abs().max())
        raise AdapterStateError(
            f"With all adapters of {model.name} switched off its logits still differ from those of "
            f"its own layers, by up to {gap:.2g}: an adapter takes part. Unmerge the adapters and "
            "remove hooks, or load the model again."
        )


@contextlib.contextmanager
def _around_adapters(module: nn.Module) -> Iterator[None]:
    """Calls the base's own layer wherever PEFT has put another around it."""
    before: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            own = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            own = layer.original_module
        else:
            continue
        assert isinstance(own, nn.Module), type(own)
        before.append((layer, layer.__dict__.get("forward")))
        layer.forward = own.__call__
    try:
        yield
    finally:
        for layer, forward in before:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
