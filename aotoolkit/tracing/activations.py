"""Activations: vectors, the tokens they were read at, and where they came from."""

import dataclasses
import hashlib
import html
import json
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aotoolkit.atomic import replacing
from aotoolkit.errors import (
    CorruptedFileError,
    IncompatibleActivationsError,
    LayerError,
    NonFiniteError,
    PositionError,
    UnsupportedModelError,
)
from aotoolkit.tracing.messages import MessageSpan

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

    from aotoolkit.tracing.encoding import Prompt
    from aotoolkit.tracing.model import TracedModel

Layer = int | float

_FORMAT = 1
_METADATA_KEY = "aotoolkit_activations"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where activations came from.

    Attributes:
        model: the model's path or Hub id.
        revision: its revision on the Hub, where known.
        base_digest: SHA-256 over the base model's config and weights.
        num_layers: how many blocks the model has.
        adapter: the adapter that was live, None for the base.
        adapter_digest: SHA-256 over that adapter's weights.
        chat_template_digest: SHA-256 of the chat template that rendered the prompt; None where
            the prompt was a string or token ids.
        dtype: of the model, such as "float32".
        source: "nnsight", "nnsight remote" or "transformer_lens cache".
        versions: of the libraries that took part.
        subtracted: for a difference, the provenance of what was subtracted.
        chat_template_kwargs: what the chat template was given, such as
            `{"enable_thinking": False}`.
        amplified_by: how many times the difference to `amplified_from` was taken; None where
            vectors are as they were read.
        amplified_from: the provenance of the read to which the difference was added.
        common_share: how much of what `common_to` have in common was taken away; None where vectors
            are as they were read.
        common_to: the provenances of these reads; the last is the base that they are compared with.
    """

    model: str
    revision: str | None
    base_digest: str
    num_layers: int
    adapter: str | None
    adapter_digest: str | None
    chat_template_digest: str | None
    dtype: str
    source: str
    versions: dict[str, str]
    subtracted: "Provenance | None" = None
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    amplified_by: float | None = None
    amplified_from: "Provenance | None" = None
    common_share: float | None = None
    common_to: "tuple[Provenance, ...]" = ()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Activations:
    """The residual stream after some blocks, at some positions of one prompt.

    Attributes:
        vectors: [l s d], in the model's dtype (float32 for a difference).
        layers: the l block indices, in the order of `vectors`.
        context_ids: token ids of the whole prompt.
        positions: the s positions read, indices into `context_ids`.
        token_ids: token ids at the positions.
        tokens: strings of these tokens.
        offsets: their character spans in `text`.
        text: the whole prompt after the chat template.
        provenance: which model, adapter, template and libraries.
        messages: where each message of a chat stands in `text`; empty for other prompts.
    """

    vectors: Float[Tensor, "l s d"]
    layers: tuple[int, ...]
    context_ids: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    text: str
    provenance: Provenance
    messages: tuple[MessageSpan, ...] = ()

    def __post_init__(self) -> None:
        num_layers, num_positions = self.vectors.shape[:2]
        assert self.vectors.ndim == 3, f"vectors are [l s d], got {tuple(self.vectors.shape)}"
        assert len(self.layers) == num_layers, (self.layers, self.vectors.shape)
        lengths = {len(x) for x in (self.positions, self.token_ids, self.tokens, self.offsets)}
        assert lengths == {num_positions}, (lengths, self.vectors.shape)
        if not num_positions:
            raise PositionError("No positions: activations are read at one position or more.")
        if not num_layers:
            raise LayerError("No layers: activations are read at one layer or more.")
        if not bool(torch.isfinite(self.vectors).all()):
            raise NonFiniteError(_non_finite_message(self.vectors, self.layers, self.positions))

    @property
    def adapter(self) -> str | None:
        """Name of the adapter that was live; None for the base model."""
        return self.provenance.adapter

    @property
    def d_model(self) -> int:
        """Width of the vectors."""
        return self.vectors.shape[-1]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Self:
        """By place among the positions read: `acts[-10:]`, `acts[3]`, `acts[[0, 2]]`.

        Raises:
            PositionError: out of range, or nothing left.
        """
        n = len(self)
        if isinstance(index, slice):
            chosen = list(range(n))[index]
            if not chosen:
                raise PositionError(
                    f"The slice [{index.start}:{index.stop}:{index.step}] of {n} positions is "
                    "empty. Choose at least one position."
                )
        else:
            indices = [_whole(one) for one in _listed(index)]
            outside = [i for i in indices if not -n <= i < n]
            if outside:
                raise PositionError(
                    f"Index {outside[0]} is out of range: these activations have {n} positions "
                    f"(0 to {n - 1}, or -{n} to -1). For a position in the prompt use acts.at()."
                )
            if not indices:
                raise PositionError("No positions were chosen. Choose at least one.")
            chosen = [i % n for i in indices]
        return self._take(chosen)

    def at(self, positions: int | Sequence[int]) -> Self:
        """By position in the prompt (negative: from its end), in the order given.

        Raises:
            PositionError: a position outside the prompt, or one that was not read.
        """
        wanted = resolve_positions(_listed(positions), len(self.context_ids))
        place = {position: i for i, position in enumerate(self.positions)}
        unread = [position for position in wanted if position not in place]
        if unread:
            raise PositionError(
                f"Positions {unread[:5]} of the prompt were not read; these activations have "
                f"{_short(self.positions)}. Read them with model.activations(..., positions=...)."
            )
        return self._take([place[position] for position in wanted])

    def _take(self, chosen: list[int]) -> Self:
        return dataclasses.replace(
            self,
            vectors=self.vectors[:, chosen],
            positions=tuple(self.positions[i] for i in chosen),
            token_ids=tuple(self.token_ids[i] for i in chosen),
            tokens=tuple(self.tokens[i] for i in chosen),
            offsets=tuple(self.offsets[i] for i in chosen),
        )

    def layer(self, layers: Layer | Sequence[Layer]) -> Self:
        """Only these layers (block indices, or fractions of the model's depth).

        Raises:
            LayerError: a layer that was not read.
        """
        wanted = resolve_layers(layers, self.provenance.num_layers)
        unread = [layer for layer in wanted if layer not in self.layers]
        if unread:
            raise LayerError(
                f"Layer {unread[0]} was not read; these activations have layers "
                f"{list(self.layers)}. Read it with model.activations(..., layers=...)."
            )
        chosen = [self.layers.index(layer) for layer in wanted]
        return dataclasses.replace(self, vectors=self.vectors[chosen], layers=wanted)

    def __sub__(self, other: "Activations") -> Self:
        """What differs between two reads of the same tokens, such as two adapters' (float32).

        Raises:
            IncompatibleActivationsError: other tokens, positions, layers or base model.
        """
        if not isinstance(other, Activations):
            return NotImplemented
        self._refuse_other_tokens(other, "subtracted")
        return dataclasses.replace(
            self,
            vectors=self.vectors.float() - other.vectors.float().to(self.vectors.device),
            provenance=dataclasses.replace(self.provenance, subtracted=other.provenance),
        )

    def amplified(self, base: "Activations", *, by: float) -> Self:
        """What fine-tuning changed, taken several times: `base + by * (self - base)` (float32).

        Fine-tuning may move activations in the direction that an oracle reads, and not far enough.
        Text is not amplified: what both reads have in common stays as it is.

        Args:
            base: the same tokens, read without the adapter (or with another).
            by: 1 gives the vectors as they are, 1.5 half as much again of the change, 0 `base`.

        Raises:
            IncompatibleActivationsError: other tokens, positions, layers or base model, or `by` is
                no number from 0 on.
        """
        self._refuse_other_tokens(base, "amplified")
        if not (math.isfinite(by) and by >= 0):
            raise IncompatibleActivationsError(
                f"by is {by}; give a number from 0 on, such as 1.5 for half as much again."
            )
        other = base.vectors.float().to(self.vectors.device)
        return dataclasses.replace(
            self,
            vectors=other + by * (self.vectors.float() - other),
            provenance=dataclasses.replace(
                self.provenance, amplified_by=float(by), amplified_from=base.provenance
            ),
        )

    def without_common(
        self, siblings: Sequence["Activations"], base: "Activations", *, share: float = 0.5
    ) -> Self:
        """Less what other models with the same kind of fine-tuning changed in this text (float32).

        `self - share * (mean of siblings - base)`. Fine-tuning moves activations in directions of
        which an oracle, trained on a base alone, knows nothing and speaks all the same. What
        siblings have in common is not what one of them hides; docs/nano_tried.md has what was
        measured.

        Args:
            siblings: the same tokens, read with other adapters, fine-tuned alike on other things.
            base: the same tokens, read without an adapter.
            share: of what they have in common, from 0 to 1.

        Raises:
            IncompatibleActivationsError: other tokens, positions, layers or base model, no
                siblings, this adapter among them, a base that was read with one, or `share` is no
                number from 0 to 1.
        """
        for other in (*siblings, base):
            self._refuse_other_tokens(other, "compared with siblings")
        if not siblings:
            raise IncompatibleActivationsError(
                "There are no siblings. Give the same tokens, read with one other adapter or more."
            )
        if base.adapter is not None:
            raise IncompatibleActivationsError(
                f"What siblings are compared with was read with the adapter {base.adapter!r}. "
                "Give the same tokens, read without an adapter."
            )
        for sibling in siblings:
            if sibling.provenance.adapter_digest in (self.provenance.adapter_digest, None):
                raise IncompatibleActivationsError(
                    f"A sibling was read with the adapter {sibling.adapter!r}, which is the one "
                    "that is asked about, or none. Give reads of other adapters."
                )
        if not 0 <= share <= 1:
            raise IncompatibleActivationsError(
                f"share is {share}; give a number from 0 to 1, such as 0.5 for half of it."
            )
        device = self.vectors.device
        mean = torch.stack([other.vectors.float().to(device) for other in siblings]).mean(0)
        return dataclasses.replace(
            self,
            vectors=self.vectors.float() - share * (mean - base.vectors.float().to(device)),
            provenance=dataclasses.replace(
                self.provenance,
                common_share=float(share),
                common_to=tuple(other.provenance for other in (*siblings, base)),
            ),
        )

    def _refuse_other_tokens(self, other: "Activations", done: str) -> None:
        for what, mine, theirs in (
            ("prompts", self.context_ids, other.context_ids),
            ("positions", self.positions, other.positions),
            ("layers", self.layers, other.layers),
            ("base models", self.provenance.base_digest, other.provenance.base_digest),
        ):
            if mine != theirs:
                raise IncompatibleActivationsError(
                    f"Activations of different {what} cannot be {done}: {_short(mine)} and "
                    f"{_short(theirs)}. Read both with the same prompt, positions and layers."
                )
        for one in (self.provenance, other.provenance):
            for changed, what in (
                (one.subtracted, "a difference"),
                (one.amplified_from, "amplified"),
                (one.common_to, "less what siblings have in common"),
            ):
                if changed:
                    raise IncompatibleActivationsError(
                        f"One side is {what} already. Activations are {done} as they were read."
                    )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        vectors = self.vectors.detach().cpu().contiguous()
        description = {
            "format": _FORMAT,
            "vectors_sha256": _digest(vectors),
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("vectors", "provenance", "messages")
            },
            "messages": [dataclasses.asdict(message) for message in self.messages],
            "provenance": dataclasses.asdict(self.provenance),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({"vectors": vectors}, temporary, {_METADATA_KEY: json.dumps(description)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            CorruptedFileError: not a file of activations, or a damaged one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = list(file.keys())
                vectors = file.get_tensor("vectors") if names == ["vectors"] else None
        except (SafetensorError, OSError, ValueError) as error:
            raise CorruptedFileError(
                f"{path} is not a safetensors file, or it is damaged: {error}. Read the "
                "activations again and save them."
            ) from error
        if vectors is None or _METADATA_KEY not in metadata:
            raise CorruptedFileError(
                f"{path} was not written by Activations.save: it holds the tensors {names[:5]} "
                f"and the metadata {sorted(metadata)[:5]}."
            )
        try:
            description = json.loads(metadata[_METADATA_KEY])
            if description.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}: another version of aotoolkit")
            if description.pop("vectors_sha256") != _digest(vectors):
                raise ValueError("the vectors have changed since they were saved")
            provenance = _provenance(description.pop("provenance"))
            offsets = tuple((start, end) for start, end in description.pop("offsets"))
            text = description.pop("text")
            # Files of the first version of the package have none.
            messages = tuple(MessageSpan(**span) for span in description.pop("messages", []))
            return cls(
                vectors=vectors,
                text=text,
                offsets=offsets,
                messages=messages,
                provenance=provenance,
                **{name: tuple(value) for name, value in description.items()},
            )
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise CorruptedFileError(f"{path} is damaged: {error}. Save it again.") from error

    @classmethod
    def from_cache(
        cls,
        cache: "Mapping[str, Tensor] | ActivationCache",
        prompt: "Prompt",
        *,
        model: "TracedModel",
        layers: Layer | Sequence[Layer] | None = None,
        positions: Sequence[int] | slice | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        row: int = 0,
    ) -> "Activations":
        """From a TransformerLens `ActivationCache` (its `blocks.{l}.hook_resid_post`).

        Args:
            cache: what `bridge.run_with_cache` returned, of tensors [b s d] or [s d].
            prompt: what was run; best as the token ids, since TransformerLens may have put a
                beginning-of-sequence token before a text.
            model: the model that was run, for its name, digest and tokenizer.
            layers: default: all in the cache.
            positions: default: all.
            add_generation_prompt: for a chat.
            chat_template_kwargs: for a chat; default: the model's.
            row: which row of a batch (without padding).

        Raises:
            UnsupportedModelError: the cache is of a bridge in compatibility mode.
            IncompatibleActivationsError: the cache has another number of tokens.
            LayerError: a layer that is not in the cache.
        """
        refuse_compatibility_mode(getattr(cache, "model", None))
        encoded = model.encode(
            prompt,
            add_generation_prompt=add_generation_prompt,
            chat_template_kwargs=chat_template_kwargs,
        )
        cached = [
            layer for layer in range(model.num_layers) if f"blocks.{layer}.hook_resid_post" in cache
        ]
        wanted = tuple(cached) if layers is None else resolve_layers(layers, model.num_layers)
        missing = [layer for layer in wanted if layer not in cached]
        if missing or not wanted:
            raise LayerError(
                f"The cache has no hook_resid_post of layers {missing or 'any'}; it has {cached}. "
                "Add them to the names_filter of run_with_cache."
            )
        per_layer = []
        for layer in wanted:
            residual = cache[f"blocks.{layer}.hook_resid_post"]
            residual = residual[row] if residual.ndim == 3 else residual
            if residual.shape[0] != len(encoded):
                raise IncompatibleActivationsError(
                    f"The cache has {residual.shape[0]} positions, the prompt {len(encoded)} "
                    "tokens. TransformerLens may have put a beginning-of-sequence token before "
                    "the text: give the token ids that were run as the prompt."
                )
            per_layer.append(residual.detach())
        chosen = resolve_positions(positions, len(encoded))
        return Activations(
            vectors=torch.stack(per_layer)[:, list(chosen)],
            layers=wanted,
            context_ids=encoded.token_ids,
            positions=chosen,
            token_ids=tuple(encoded.token_ids[i] for i in chosen),
            tokens=tuple(encoded.tokens[i] for i in chosen),
            offsets=tuple(encoded.offsets[i] for i in chosen),
            text=encoded.text,
            messages=encoded.messages,
            provenance=model.provenance(
                adapter=None,
                chat=encoded.chat,
                source="transformer_lens cache",
                chat_template_kwargs=chat_template_kwargs,
            ),
        )

    def _title(self) -> str:
        minus = self.provenance.subtracted
        adapter = self.adapter or "base"
        if minus:
            adapter += f" - {minus.adapter or 'base'}"
        if plain := self.provenance.amplified_from:
            times = f"{self.provenance.amplified_by:g}"
            adapter += f", {times} times its difference to {plain.adapter or 'base'}"
        if common := self.provenance.common_to:
            share = f"{self.provenance.common_share:g}"
            adapter += f", less {share} of what {len(common) - 1} siblings have in common"
        return (
            f"layers {list(self.layers)}, {len(self)} of {len(self.context_ids)} positions, "
            f"width {self.d_model}, {self.provenance.model} ({adapter})"
        )

    def __repr__(self) -> str:
        return f"Activations({self._title()}: {_short(''.join(self.tokens))!r})"

    def _repr_html_(self) -> str:
        tokens = "".join(
            f'<span title="position {position}, token id {token_id}" style="border:1px solid '
            f'#8888;border-radius:3px;padding:0 2px;margin:1px;white-space:pre-wrap">'
            f"{html.escape(token)}</span>"
            for position, token_id, token in zip(
                self.positions, self.token_ids, self.tokens, strict=True
            )
        )
        return f"<div><b>Activations</b>: {html.escape(self._title())}<br>{tokens}</div>"


def resolve_layers(layers: Layer | Sequence[Layer], num_layers: int) -> tuple[int, ...]:
    """Block indices (negative: from the end) and fractions of depth -> block indices.

    A fraction f of the depth is block `int(f * num_layers)`, as in the Activation Oracles paper's
    code.

    Raises:
        LayerError: none, one outside the model, one twice.
    """
    given = _listed(layers)
    if not given:
        raise LayerError("No layers were given. Give block indices such as 4, or fractions as 0.5.")
    resolved = []
    for layer in given:
        if isinstance(layer, bool) or not isinstance(layer, numbers.Real):
            raise LayerError(f"A layer is a block index or a fraction of depth, got {layer!r}.")
        if isinstance(layer, numbers.Integral):
            block = int(layer)
            if not -num_layers <= block < num_layers:
                raise LayerError(
                    f"Layer {layer} is out of range: the model has {num_layers} blocks "
                    f"(0 to {num_layers - 1}, or -{num_layers} to -1)."
                )
            resolved.append(block % num_layers)
        else:
            fraction = float(layer)
            if not 0 <= fraction < 1:
                raise LayerError(
                    f"Layer {layer!r} is no fraction of the depth: it must be at least 0.0 and "
                    f"below 1.0. For a block give an integer (0 to {num_layers - 1})."
                )
            resolved.append(int(fraction * num_layers))
    if len(set(resolved)) != len(resolved):
        raise LayerError(
            f"Layers {given} name a block twice: with {num_layers} blocks they are {resolved}."
        )
    return tuple(resolved)


def resolve_positions(positions: Sequence[int] | slice | None, num_tokens: int) -> tuple[int, ...]:
    """Positions in a prompt (negative: from its end; None: all) -> indices.

    Raises:
        PositionError: none, or one outside the prompt.
    """
    if positions is None:
        return tuple(range(num_tokens))
    if isinstance(positions, slice):
        resolved = tuple(range(num_tokens)[positions])
    else:
        whole = [_whole(position) for position in positions]
        outside = [p for p in whole if not -num_tokens <= p < num_tokens]
        if outside:
            raise PositionError(
                f"Position {outside[0]} is out of range: the prompt has {num_tokens} tokens "
                f"(0 to {num_tokens - 1}, or -{num_tokens} to -1)."
            )
        resolved = tuple(p % num_tokens for p in whole)
    if not resolved:
        raise PositionError(
            f"No positions: {positions!r} of a prompt of {num_tokens} tokens is empty. Choose at "
            "least one."
        )
    return resolved


def _listed(value: Any) -> list[Any]:
    """One number, of Python's or numpy's, or several, as a list."""
    return [value] if isinstance(value, numbers.Number) else list(value)


def _whole(position: Any) -> int:
    try:
        if isinstance(position, bool):
            raise TypeError
        return operator.index(position)
    except TypeError:
        raise PositionError(
            f"A position is a whole number, got {position!r}; fractions are for layers alone."
        ) from None


def refuse_compatibility_mode(bridge: Any) -> None:
    """Raise for a TransformerLens bridge in compatibility mode.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise UnsupportedModelError(
            "The TransformerBridge is in compatibility mode: it centres the residual stream and "
            "folds the norms' weights, so that its activations are not those that an oracle was "
            "trained to read. Boot the bridge again and do not call enable_compatibility_mode()."
        )


def _non_finite_message(
    vectors: Tensor, layers: tuple[int, ...], positions: tuple[int, ...]
) -> str:
    bad = (~torch.isfinite(vectors)).any(-1).nonzero()
    layer, position = layers[int(bad[0, 0])], positions[int(bad[0, 1])]
    return (
        f"The activations at {len(bad)} of {vectors.shape[0] * vectors.shape[1]} places are NaN or "
        f"infinite, the first at layer {layer}, position {position}. Run the model in bfloat16 or "
        "float32 instead of float16, or look for broken weights."
    )


def _provenance(fields: dict[str, Any]) -> Provenance:
    """A provenance as JSON has it; files of earlier versions of the package lack some fields."""
    for name in ("subtracted", "amplified_from"):
        if fields.get(name):
            fields[name] = _provenance(fields[name])
    fields["common_to"] = tuple(_provenance(one) for one in fields.get("common_to", ()))
    return Provenance(**fields)


def _digest(vectors: Tensor) -> str:
    return hashlib.sha256(vectors.view(-1).view(torch.uint8).numpy()).hexdigest()  # pyright: ignore[reportArgumentType]


def _short(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
