"""What a checkpoint needs to be used right, in one file beside its weights.

The largest source of wrong results with oracles is one used with another prompt, layer, formula or
adapter than it was trained with; nothing crashes, the answers are merely worse. So an oracle never
runs on defaults: every field that changes its input is stated here, and has no default value.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from aotoolkit.atomic import replacing
from aotoolkit.errors import CalibrationError, ContractError
from aotoolkit.oracle.confidence import Calibration, Confidence

CONTRACT_FILE = "oracle_contract.json"
SCHEMA_VERSION = 1
# Of apply_chat_template.
_OF_RENDERING = {"conversation", "tokenize", "add_generation_prompt"}
PLACEHOLDERS = "{placeholders}"

Formula = Literal["add_norm_matched", "replace", "add_rescaled"]
LayersPerPrompt = Literal["one", "several"]
PositionIds = Literal["from_mask", "shifted"]
Transform = Literal[
    "none",
    "centred_by_layer",
    "centred_by_token",
    "whitened",
    "mapped",
    "mapped_by_token",
    "mapped_pooled",
    "mapped_recalled",
]
Dialect = Literal["activation_oracle", "latentqa"]
# How many of the last positions are read; "all" for every one.
Window = int | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """What an oracle is asked with where the caller states nothing.

    `aotoolkit sweep` measures it; a contract holds it as `recommended_layer` (one, or a list),
    `recommended_window`, `recommended_coefficient` and `recommended_temperature` in `extra`. They
    belong together: window, coefficient and temperature were measured on these layers, and are
    used on no others.

    Attributes:
        layers: Blocks to read; empty for no recommendation, as None in the other fields.
        window: How many of the last tokens of a whole prompt.
        coefficient: Of the injection, in place of the one it was trained with.
        temperature: Of sampling; 0 is greedy.
    """

    layers: tuple[int, ...] = ()
    window: Window | None = None
    coefficient: float | None = None
    temperature: float | None = None

    def for_layers(self, layers: Sequence[int]) -> "Recommended":
        """What of it holds for a prompt about these layers: all of it, or nothing."""
        return self if not self.layers or set(self.layers) == set(layers) else Recommended()

    def to_extra(self) -> dict[str, Any]:
        """The entries of `OracleContract.extra` that say it."""
        layer = self.layers[0] if len(self.layers) == 1 else list(self.layers) or None
        values = {
            "recommended_layer": layer,
            "recommended_window": self.window,
            "recommended_coefficient": self.coefficient,
            "recommended_temperature": self.temperature,
        }
        return {name: value for name, value in values.items() if value is not None}


def is_window(value: Any) -> bool:
    """Whether a value says how many of the last positions are read."""
    return value == "all" or (_is_whole(value) and value > 0)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class OracleContract:
    r"""How an oracle's prompt is written and how vectors enter it.

    Attributes:
        base_model: Hub id or path of the base that the adapter was trained on.
        base_revision: Revision of the base; None where it was not recorded.
        base_digest: `TracedModel.base_digest` of that base; None where it was not recorded.
        tokenizer_digest: `tokenizer_digest` of its tokenizer; None where it was not recorded.
        dialect: The turns around the placeholders: `activation_oracle` (one user turn of prefix and
            question) or `latentqa` (a turn of placeholders, a fixed reply, a turn of the question,
            and an assistant that is called `reflect`).
        prefix_template: Text of one layer's placeholders, with `{placeholders}` and, where the
            layer is named, `{layer}`; for example `"Layer: {layer}\n{placeholders} \n"`.
        placeholder: Text of one placeholder, a single token.
        placeholder_id: Its token id; None where it was not recorded.
        neighbour_ids: The ids before the first and after the last placeholder of a prompt for
            `read_layers[0]`; empty where they were not recorded.
        chat_template_kwargs: Arguments for the tokenizer's chat template, such as
            `{"enable_thinking": False}`.
        read_layers: Blocks whose outputs the oracle was trained on, counted from 0.
        read_fractions: The same as fractions of depth; empty where they were not recorded.
        layers_per_prompt: Whether one prompt holds vectors of one layer or of several.
        inject_layer: Block after which vectors are injected.
        formula: With h the residual stream, v a vector, c `coefficient`, s `final_scale`:
            `add_norm_matched` h + c|h|v/|v|; `replace` v; `add_rescaled` us|h|/|u| with
            u = h + c|h|v/|v|.
        coefficient: c.
        final_scale: s; only `add_rescaled` has it, 1.0 elsewhere.
        transform: What is done to a vector before injection.
        transform_digest: Digest of the statistics that the transform needs.
        position_ids: `from_mask` counts the prompt's own tokens from 0; `shifted` adds the number
            of target tokens before the read span (LatentQA).
        collection_adapter: Name of the adapter that was live when the training activations were
            read; None for the base.
        lora_rank: Rank r of the adapter.
        lora_alpha: Its alpha.
        rslora: Whether the scale is alpha/sqrt(r), not alpha/r.
        training_data: One mapping for each part: name, size, digest.
        calibrations: What turns confidences into chances of being right; empty for none.
        licence: Licence of the checkpoint.
        aotoolkit_version: The version that wrote it.
        schema_version: Version of this file's form.
        extra: Anything else, such as measured figures, and what `recommended` is made of.
    """

    base_model: str
    base_revision: str | None = None
    base_digest: str | None = None
    tokenizer_digest: str | None = None
    dialect: Dialect
    prefix_template: str
    placeholder: str
    placeholder_id: int | None = None
    neighbour_ids: tuple[int, ...] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    read_layers: tuple[int, ...]
    read_fractions: tuple[float, ...] = ()
    layers_per_prompt: LayersPerPrompt
    inject_layer: int
    formula: Formula
    coefficient: float
    final_scale: float = 1.0
    transform: Transform
    transform_digest: str | None = None
    position_ids: PositionIds
    collection_adapter: str | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    rslora: bool | None = None
    training_data: tuple[Mapping[str, Any], ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    licence: str | None = None
    aotoolkit_version: str | None = None
    schema_version: int = SCHEMA_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ContractError(
                f"schema_version is {self.schema_version!r}; this aotoolkit reads {SCHEMA_VERSION}."
                " Install the aotoolkit that wrote the contract (its aotoolkit_version names it)."
            )
        for name, allowed in (
            ("dialect", get_args(Dialect)),
            ("layers_per_prompt", get_args(LayersPerPrompt)),
            ("formula", get_args(Formula)),
            ("transform", get_args(Transform)),
            ("position_ids", get_args(PositionIds)),
        ):
            if getattr(self, name) not in allowed:
                raise ContractError(
                    f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}."
                )
        for name, kind in (
            ("base_model", str),
            ("prefix_template", str),
            ("placeholder", str),
            ("inject_layer", int),
            ("coefficient", (int, float)),
            ("final_scale", (int, float)),
            ("read_layers", tuple),
            ("neighbour_ids", tuple),
            ("chat_template_kwargs", Mapping),
            ("extra", Mapping),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ContractError(f"{name} is {getattr(self, name)!r}, which has the wrong type.")
        if not all(isinstance(layer, int) for layer in self.read_layers):
            raise ContractError(f"read_layers is {self.read_layers}; it must hold whole numbers.")
        if taken := _OF_RENDERING & set(self.chat_template_kwargs):
            raise ContractError(
                f"chat_template_kwargs has {sorted(taken)[0]!r}, which rendering a prompt decides; "
                "leave it out."
            )
        left_open = self.extra.get("not_recorded", ())
        if not isinstance(left_open, list | tuple) or not all(
            isinstance(name, str) for name in left_open
        ):
            raise ContractError(
                f"extra['not_recorded'] is {left_open!r}; it must be a list of names of fields."
            )
        if self.prefix_template.count(PLACEHOLDERS) != 1:
            raise ContractError(
                f"prefix_template is {self.prefix_template!r}; it must hold {PLACEHOLDERS} once."
            )
        if not self.placeholder:
            raise ContractError("placeholder is empty; it must be the text of one token.")
        if not self.read_layers or min(self.read_layers) < 0:
            raise ContractError(
                f"read_layers is {self.read_layers}; it must name at least one block, from 0."
            )
        if self.inject_layer < 0:
            raise ContractError(f"inject_layer is {self.inject_layer}; blocks count from 0.")
        if self.formula != "add_rescaled" and self.final_scale != 1.0:
            raise ContractError(
                f"final_scale is {self.final_scale} with the formula {self.formula!r}; only "
                "add_rescaled has a final scale, so set it to 1.0."
            )
        if self.formula == "replace" and self.coefficient != 1.0:
            raise ContractError(
                f"coefficient is {self.coefficient} with the formula 'replace', which has none; "
                "set it to 1.0."
            )
        _ = self.recommended  # refuses what cannot be recommended
        keys = [(one.kind, json.dumps(one.settings, sort_keys=True)) for one in self.calibrations]
        if twice := [kind for kind, settings in keys if keys.count((kind, settings)) > 1]:
            raise ContractError(
                f"calibrations has {twice[0]!r} twice for the same settings; keep one of them."
            )

    @property
    def recommended(self) -> Recommended:
        """What the oracle is asked with where the caller states nothing, from `extra`.

        Raises:
            ContractError: A recommendation has the wrong type.
        """
        layer = self.extra.get("recommended_layer", ())
        layers = (layer,) if _is_whole(layer) else layer
        window = self.extra.get("recommended_window")
        coefficient = self.extra.get("recommended_coefficient")
        temperature = self.extra.get("recommended_temperature")
        for name, value, allowed, fits in (
            (
                "recommended_layer",
                layer,
                "a block, or a list of blocks where a prompt holds several layers",
                isinstance(layers, list | tuple)
                and all(_is_whole(block) and block >= 0 for block in layers)
                and (len(layers) < 2 or self.layers_per_prompt == "several"),
            ),
            (
                "recommended_window",
                window,
                'a number of tokens from 1 on, or "all"',
                window is None or is_window(window),
            ),
            (
                "recommended_coefficient",
                coefficient,
                "a finite number",
                coefficient is None or _is_finite_number(coefficient),
            ),
            (
                "recommended_temperature",
                temperature,
                "a finite number from 0 on",
                temperature is None or (_is_finite_number(temperature) and temperature >= 0),
            ),
        ):
            if not fits:
                raise ContractError(f"extra[{name!r}] is {value!r}; it must be {allowed}.")
        return Recommended(
            layers=tuple(layers), window=window, coefficient=coefficient, temperature=temperature
        )

    def calibrated(self, confidence: Confidence) -> Confidence:
        """A confidence as a chance of being right, where a calibration fits its kind and settings.

        Elsewhere it comes back as it is, and says that it is not calibrated.
        """
        for calibration in self.calibrations:
            if calibration.fits(confidence):
                return calibration.apply(confidence)
        return confidence

    def with_calibration(self, calibration: Calibration) -> Self:
        """The contract with a calibration, in place of one of the same kind and settings."""
        others = tuple(
            one
            for one in self.calibrations
            if (one.kind, one.settings) != (calibration.kind, calibration.settings)
        )
        return dataclasses.replace(self, calibrations=(*others, calibration))

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `oracle_contract.json` into a folder, whole or not at all; returns its path."""
        path = Path(folder) / CONTRACT_FILE
        text = json.dumps(self._stored(), indent=2, ensure_ascii=False) + "\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads the contract of a folder.

        Raises:
            ContractError: The file is absent, is not JSON, lacks a field, has one that this version
                does not know, or has a value that is not allowed.
        """
        path = Path(folder) / CONTRACT_FILE
        if not path.is_file():
            raise ContractError(f"{path} does not exist. Oracles saved by aotoolkit have it.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ContractError(f"{path} is not JSON: {error}.") from error
        return cls.from_dict(values, source=str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the contract") -> Self:
        """A contract from the mapping that `write` stores.

        Raises:
            ContractError: As `read`.
        """
        if not isinstance(values, Mapping):
            raise ContractError(f"{source} holds {type(values).__name__}, not a mapping of fields.")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ContractError(
                f"{source} has the field {unknown[0]!r}, which this aotoolkit does not know; "
                "update aotoolkit, or move the field into 'extra'."
            )
        no_default = dataclasses.MISSING
        for name, spec in fields.items():
            if name not in values and spec.default is no_default is spec.default_factory:
                raise ContractError(f"{source} lacks the field {name!r}, which has no default.")
        fitting: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        try:
            fitting["calibrations"] = tuple(
                Calibration.from_dict(one) for one in fitting.get("calibrations", ())
            )
        except (CalibrationError, TypeError) as error:
            raise ContractError(f"A calibration in {source} cannot be used: {error}") from error
        return cls(**fitting)

    def _stored(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        if not self.calibrations:
            del values[
                "calibrations"
            ]  # the file and digest of contracts from before there were any
        return values

    @property
    def digest(self) -> str:
        """sha256 over all fields."""
        text = json.dumps(self._stored(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def prefix(self, layers: tuple[int, ...], num_positions: int) -> tuple[str, list[int]]:
        """The text of all placeholders, layer-major, and where each placeholder starts in it."""
        text, starts = "", []
        for layer in layers:
            before, after = self.prefix_template.replace("{layer}", str(layer)).split(PLACEHOLDERS)
            first = len(text) + len(before)
            starts += [first + i * len(self.placeholder) for i in range(num_positions)]
            text += before + self.placeholder * num_positions + after
        return text, starts
