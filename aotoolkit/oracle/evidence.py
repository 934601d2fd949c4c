"""Activations -> the vectors that one prompt is asked about, and those of the base control."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aotoolkit.errors import (
    IncompatibleActivationsError,
    LayerError,
    NonFiniteError,
    PositionError,
    UntrainedLayerWarning,
)
from aotoolkit.oracle.contract import OracleContract, Recommended, Window, is_window
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import Activations, TracedModel

_READ_BATCH = 16


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one prompt is asked about.

    Attributes:
        acts: The activations it was taken from.
        layers: The blocks of `vectors`.
        places: Indices of its positions in `acts`.
        vectors: [l p d], transformed, float32 on the CPU.
        base: The same read from the base model; None where that is no control.
        window: The window that chose the positions; None where the caller did.
        alone: [l p d], the vectors as they are where each position is asked about by itself; None
            where that is no difference.
        base_alone: The same of `base`.
    """

    acts: Activations
    layers: tuple[int, ...]
    places: tuple[int, ...]
    vectors: Float[Tensor, "l p d"]
    base: Float[Tensor, "l p d"] | None = None
    window: int | None = None
    alone: Float[Tensor, "l p d"] | None = None
    base_alone: Float[Tensor, "l p d"] | None = None

    @property
    def span(self) -> int | str:
        """How many positions a prompt is about, as far as that is a rule and not the prompt's."""
        if len(self.places) == 1:
            return 1
        return "span" if self.window is None else self.window

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions in the target's prompt."""
        return tuple(self.acts.positions[place] for place in self.places)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The target's tokens there."""
        return tuple(self.acts.tokens[place] for place in self.places)

    def seed(self, seed: int) -> int:
        """A seed for random controls: each evidence its own, the same wherever it is asked about.

        One draw for all would make a control of twenty answers a sample of one.
        """
        origin = self.acts.provenance
        adapters = [origin.adapter_digest, origin.subtracted and origin.subtracted.adapter_digest]
        parts = [seed, self.acts.context_ids, self.layers, self.positions, adapters]
        digest = hashlib.sha256(json.dumps(parts).encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def cells(self) -> Iterator["Evidence"]:
        """Each layer and token alone."""
        vectors = self.vectors if self.alone is None else self.alone
        base = self.base if self.base_alone is None else self.base_alone
        for row, layer in enumerate(self.layers):
            for col, place in enumerate(self.places):
                yield Evidence(
                    self.acts,
                    (layer,),
                    (place,),
                    vectors[row : row + 1, col : col + 1],
                    None if base is None else base[row : row + 1, col : col + 1],
                )

    def by_position(self) -> Iterator["Evidence"]:
        """Each token alone, with all layers; without the base control."""
        vectors = self.vectors if self.alone is None else self.alone
        for col, place in enumerate(self.places):
            yield Evidence(self.acts, self.layers, (place,), vectors[:, col : col + 1])


def gather_evidence(
    many: Sequence[Activations],
    *,
    model: TracedModel,
    contract: OracleContract,
    transform: VectorTransform,
    allow_other_base: bool,
    base: bool,
    every_layer: bool,
    window: Window | None,
) -> list[Evidence]:
    """Checks activations, chooses their layers and transforms them, each object once.

    Args:
        many: The activations.
        model: The oracle's base.
        contract: Its contract.
        transform: What is done to vectors before injection.
        allow_other_base: Accepts activations of another base of the same width.
        base: Whether to read the same tokens from the base, where an adapter was read.
        every_layer: Takes all layers, for prompts that each are about one of them.
        window: How many of the last positions; None for those that are recommended where
            activations are of a whole prompt, and all elsewhere.

    Raises:
        IncompatibleActivationsError, NonFiniteError, LayerError, PositionError: See `Oracle.ask`.
    """
    made: dict[int, Evidence] = {}
    for given in many:
        if id(given) in made:
            continue
        _check_activations(given, model, allow_other_base)
        layers = given.layers if every_layer else _layers_to_ask(given, contract)
        used = _window(given, window, contract.recommended.for_layers(layers))
        acts = given if used is None else given[-used:]
        raw = acts.vectors[[acts.layers.index(layer) for layer in layers]]
        made[id(given)] = Evidence(
            acts,
            layers,
            tuple(range(len(acts))),
            transformed(acts, layers, raw, transform),
            window=used,
            alone=_alone(acts, layers, raw, transform),
        )
    _warn_untrained({layer for e in made.values() for layer in e.layers}, contract)
    if base:
        made |= _with_base(made, model, transform)
    return [made[id(acts)] for acts in many]


def transformed(
    acts: Activations,
    layers: tuple[int, ...],
    vectors: Float[Tensor, "l p d"],
    transform: VectorTransform,
    *,
    alone: bool = False,
) -> Float[Tensor, "l p d"]:
    """Vectors read at the positions of `acts`, transformed, float32 on the CPU.

    `alone`: for questions about one position each.

    Raises:
        LayerError: The transform has no statistics of a layer.
    """
    without = [layer for layer in layers if layer not in transform.layers]
    if transform.kind != "none" and without:
        raise LayerError(
            f"The oracle's transform {transform.kind!r} has statistics of layers "
            f"{list(transform.layers)}, not of {without}. Read one of those layers."
        )
    return transform.apply(
        vectors.detach().float().cpu(),
        layers=layers,
        token_ids=acts.token_ids,
        difference=acts.provenance.subtracted is not None,
        alone=alone,
    )


def _alone(
    acts: Activations,
    layers: tuple[int, ...],
    vectors: Float[Tensor, "l p d"],
    transform: VectorTransform,
) -> Float[Tensor, "l p d"] | None:
    if not transform.pools:
        return None
    return transformed(acts, layers, vectors, transform, alone=True)


def _window(acts: Activations, window: Window | None, recommended: Recommended) -> int | None:
    """How many of the last positions of `acts` are asked about; None for all of them."""
    # Where `acts` are of a whole prompt, nobody has chosen positions yet.
    if window is None and acts.positions == tuple(range(len(acts.context_ids))):
        window = recommended.window
    if window is None or window == "all":
        return None
    if not is_window(window):
        raise PositionError(
            f"window is {window!r}; give a number of tokens from 1 on, counted from the last, or "
            '"all".'
        )
    return window


def _check_activations(acts: Activations, model: TracedModel, allow_other_base: bool) -> None:
    if not isinstance(acts, Activations):
        raise TypeError(
            f"acts is a {type(acts).__name__}; give the Activations that TracedModel.activations "
            "returns."
        )
    if acts.d_model != model.d_model:
        raise IncompatibleActivationsError(
            f"The activations have width {acts.d_model}, the oracle's base {model.name!r} has "
            f"{model.d_model}; an oracle reads activations of its own base only."
        )
    theirs = acts.provenance.base_digest
    if not allow_other_base and not model.has_base_digest(theirs):
        raise IncompatibleActivationsError(
            f"The activations are of {acts.provenance.model!r} (base {theirs[:12]}), the oracle's "
            f"base is {model.name!r} ({model.base_digest[:12]}). Read them from the oracle's base, "
            "or pass allow_other_base=True if you mean it."
        )
    if not bool(torch.isfinite(acts.vectors).all()):
        raise NonFiniteError(
            "The activations hold NaN or Inf; read them again, in a wider dtype if the model ran "
            "in float16."
        )


def _layers_to_ask(acts: Activations, contract: OracleContract) -> tuple[int, ...]:
    # A prompt of several layers is about all that were read: nothing has to be left out.
    if contract.layers_per_prompt == "several" or len(acts.layers) == 1:
        return acts.layers
    recommended = contract.recommended.layers
    if recommended and recommended[0] in acts.layers:
        return recommended
    raise LayerError(
        f"The activations hold layers {list(acts.layers)}, and this oracle takes one layer in a "
        f"prompt. Choose one, such as acts.layer({acts.layers[0]}), or ask about each with "
        "ask_each()."
    )


def _warn_untrained(layers: set[int], contract: OracleContract) -> None:
    untrained = sorted(layers - set(contract.read_layers))
    if untrained:
        warnings.warn(
            f"This oracle was trained on layers {list(contract.read_layers)}, not on {untrained}; "
            "its answers there may mean little.",
            UntrainedLayerWarning,
            stacklevel=5,  # the caller of Oracle.ask
        )


def _with_base(
    made: Mapping[int, Evidence], model: TracedModel, transform: VectorTransform
) -> dict[int, Evidence]:
    """The evidence of which the base control applies, with the same tokens read from the base."""
    by_layers: dict[tuple[int, ...], list[int]] = {}
    for key, evidence in made.items():
        origin = evidence.acts.provenance
        # A difference has its control inside; another base cannot be read here.
        if origin.adapter and not origin.subtracted and model.has_base_digest(origin.base_digest):
            by_layers.setdefault(evidence.layers, []).append(key)
    result = {}
    for layers, keys in by_layers.items():
        for start in range(0, len(keys), _READ_BATCH):
            chunk = keys[start : start + _READ_BATCH]
            ids, mask = model.pad([made[key].acts.context_ids for key in chunk])
            read = model.residuals(ids, mask, layers=layers, adapter=None)
            for row, key in enumerate(chunk):
                acts = made[key].acts
                padding = ids.shape[1] - len(acts.context_ids)
                at = [padding + position for position in acts.positions]
                raw = read[:, row, at]
                result[key] = dataclasses.replace(
                    made[key],
                    base=transformed(acts, layers, raw, transform),
                    base_alone=_alone(acts, layers, raw, transform),
                )
    return result
