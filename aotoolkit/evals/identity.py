"""What an answer depends on, as a digest: it is used again only where nothing of that changed.

An arm may say what it is made of (`identity`). One that does not is described by its attributes,
but for those that begin with an underscore: plain values, containers and arrays by their content; a
model by the digests of its weights and its tokenizer; an oracle by those of base, adapter,
contract, transform and tokenizer; a module by its weights; an estimator of scikit-learn by all that
it holds; any other object by its class and its own attributes. A function is known by its name
only, within a `partial` too: an arm that holds one should have an `identity`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from aotoolkit.evals.items import EvalItem
from aotoolkit.oracle import Oracle
from aotoolkit.tracing import Activations, TracedModel
from aotoolkit.tracing.digest import sha256_of, tokenizer_digest

if TYPE_CHECKING:
    from aotoolkit.evals.arms import Arm


def arm_identity(arm: "Arm") -> str:
    """Digest of all that an arm's answers depend on, but for the items."""
    made_of = getattr(arm, "identity", None)
    described = _attributes(arm, ()) if made_of is None else describe(made_of)
    return _digest(["arm", type(arm).__qualname__, arm.name, arm.kind, described])


def item_identity(item: EvalItem) -> str:
    """Digest of an item and of what was read for it.

    The vectors are taken as they are: read on another machine, or beside other prompts in the
    batch, they may differ in their last bits.
    """
    values = {
        field.name: getattr(item, field.name)
        for field in dataclasses.fields(item)
        if field.name not in ("activations", "base_activations")
    }
    base = None if item.base_activations is None else _evidence(item.base_activations)
    return _digest(["item", describe(values), _evidence(item.activations), base])


def answer_digest(arm: str, item: str, *, company: Iterable[str] = ()) -> str:
    """Digest of what one answer depends on.

    Args:
        arm: The arm's identity.
        item: The item's.
        company: Those of all items that the arm is given with it, where it needs a whole task.
    """
    return _digest([arm, item, *company])


def describe(value: Any) -> Any:
    """What a value is made of, as JSON holds it; see the module."""
    return _describe(value, ())


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in above:
        return ["the object that holds it"]
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        pairs = [(_describe(k, inside), _describe(v, inside)) for k, v in value.items()]
        return ["mapping", sorted(pairs, key=lambda pair: json.dumps(pair[0]))]
    if isinstance(value, Set):
        return ["set", sorted((_describe(v, inside) for v in value), key=json.dumps)]
    if isinstance(value, slice):
        return ["slice", value.start, value.stop, value.step]
    if isinstance(value, torch.Tensor):
        return ["tensor", sha256_of({"": value}, {})]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        sha = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return ["array", str(value.dtype), list(value.shape), sha]
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, bytes):
        return [_describe(v, inside) for v in list(value)]
    if isinstance(value, Activations):
        return _evidence(value)
    if isinstance(value, Oracle):
        return _oracle(value)
    if isinstance(value, TracedModel):
        # Its chat template decides what a prompt is that an arm writes.
        return [*_weights(value), tokenizer_digest(value.tokenizer)]
    if isinstance(value, nn.Module):
        weights = sha256_of(dict(value.state_dict()), {})
        return ["module", type(value).__qualname__, str(value), weights]
    if isinstance(value, partial):
        made_of = (value.func, value.args, value.keywords)
        return ["partial", [_describe(part, inside) for part in made_of]]
    if isinstance(value, BaseEstimator):
        # What fitting found ends with an underscore, and some of it begins with one too.
        return ["object", type(value).__qualname__, _described(vars(value), inside)]
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return ["named", value.__module__, value.__qualname__]
    if not hasattr(value, "__dict__"):
        return ["value", type(value).__qualname__, str(value)]
    return ["object", type(value).__qualname__, _attributes(value, inside)]


def _attributes(value: Any, above: tuple[int, ...]) -> list[Any]:
    public = {name: v for name, v in vars(value).items() if not name.startswith("_")}
    # An adapter's name is not what it does.
    model, adapter = public.get("model"), public.get("adapter")
    if isinstance(model, TracedModel) and isinstance(adapter, str):
        public["adapter"] = model.adapter_digest(adapter)
    return _described(public, above)


def _described(attributes: Mapping[str, Any], above: tuple[int, ...]) -> list[Any]:
    return [[name, _describe(v, above)] for name, v in sorted(attributes.items())]


def _weights(model: TracedModel) -> list[Any]:
    return ["model", model.base_digest, str(model.dtype)]


def _oracle(oracle: Oracle) -> list[Any]:
    model, adapter = oracle.model, oracle.adapter
    return [
        "oracle",
        _weights(model),
        None if adapter is None else model.adapter_digest(adapter),
        oracle.contract.digest,
        oracle.transform.digest,
        tokenizer_digest(oracle.tokenizer),
    ]


def _evidence(acts: Activations) -> str:
    source = acts.provenance
    description = {
        "layers": acts.layers,
        "context_ids": acts.context_ids,
        "positions": acts.positions,
        "base": source.base_digest,
        "adapter": source.adapter_digest,
        "subtracted": source.subtracted and source.subtracted.adapter_digest,
    }
    return sha256_of({"vectors": acts.vectors}, description)


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
