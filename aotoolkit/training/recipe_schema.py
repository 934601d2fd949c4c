"""What a recipe may say: the keys of its sections and their types.

Keys are the words of the Python arguments. Where a section *is* an object of the package
(`TrainingConfig`, `TextSpec`, ...), its keys are taken from that object, so the two cannot drift
apart. Values are strict: "12" is no number.
"""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError
from transformers import BitsAndBytesConfig

from aotoolkit.data.abstention import Abstention
from aotoolkit.data.classification import Classification, OpenClassification
from aotoolkit.data.context_prediction import ContextPrediction
from aotoolkit.data.latentqa import Kind as LatentQAKind
from aotoolkit.data.latentqa import LatentQA
from aotoolkit.data.on_policy import OnPolicyTexts
from aotoolkit.data.source import LayerMode
from aotoolkit.data.split_qa import SplitQA
from aotoolkit.data.texts import TextSpec
from aotoolkit.data.window import Window
from aotoolkit.oracle.contract import OracleContract, Transform
from aotoolkit.training.config import TrainingConfig

# What a path of this machine looks like; anything else that is not there is a name on the Hub.
_FILE_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet"}


class Section(BaseModel):
    """A mapping of a recipe, whose keys are known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "", {"key": key, "allowed": list(cls.model_fields)}
                )
        return values


def _section_of(dataclass: type, *, leave_out: typing.Collection[str] = ()) -> Any:
    """A section with the fields of a dataclass, their types and defaults."""
    types = typing.get_type_hints(dataclass)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(dataclass):
        if field.name in leave_out:
            continue
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = ...
        fields[field.name] = (types[field.name], default)
    return create_model(dataclass.__name__, __base__=Section, **fields)


def _local_path(text: str, info: ValidationInfo) -> str:
    """A path relative to the recipe as it is from here, which must be there."""
    path = _beside(text, info)
    if not (path.exists() or path in _context(info)["written"]):
        raise PydanticCustomError("no_file", "", {"path": str(path)})
    return str(path)


def _path_or_hub_name(text: str, info: ValidationInfo) -> str:
    path = _beside(text, info)
    if path.exists() or path in _context(info)["written"]:
        return str(path)
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_local or Path(text).suffix in _FILE_SUFFIXES:
        raise PydanticCustomError("no_file", "", {"path": str(path)})
    return text


def _path_to_write(text: str, info: ValidationInfo) -> str:
    return str(_beside(text, info))


def _beside(text: str, info: ValidationInfo) -> Path:
    return _context(info)["folder"] / Path(text).expanduser()


def _context(info: ValidationInfo) -> dict[str, Any]:
    assert info.context is not None, "recipes are validated by load_recipe"
    return info.context


LocalPath = Annotated[str, AfterValidator(_local_path)]
PathOrHubName = Annotated[str, AfterValidator(_path_or_hub_name)]
AnyMapping = dict[str, Any]
Depth = int | float  # a block, or a fraction of depth
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TextSettings(_section_of(TextSpec, leave_out=["data"])):
    """`TextSpec`."""

    data: PathOrHubName


class WindowSettings(_section_of(Window)):
    """`Window`."""


class RolloutSettings(_section_of(OnPolicyTexts, leave_out=["prompts", "chat_template_kwargs"])):
    """`OnPolicyTexts`: what the target model writes to `path` before the mixture is built."""

    path: Annotated[str, AfterValidator(_path_to_write), Field(pattern=r"\.jsonl$")]
    prompts: TextSettings
    chat_template_kwargs: AnyMapping = Field(default_factory=dict)


class LayerSettings(Section):
    """`LayerChoice`; of the contract's layers, where none are named."""

    mode: LayerMode = "one"
    read_layers: tuple[Depth, ...] | None = None


# What every source has, and what is an object of its own there.
_OBJECTS = ("tokenizer", "layers", "window")


class _Source(Section):
    layers: LayerSettings = LayerSettings()


class _WindowedSource(_Source):
    window: WindowSettings | None = None


class ContextPredictionSettings(
    _Source, _section_of(ContextPrediction, leave_out=[*_OBJECTS, "texts"])
):
    """`ContextPrediction`."""

    kind: Literal["context_prediction"]
    texts: TextSettings


class LabelledTextSettings(Section):
    """Arguments of `read_labelled_texts`."""

    source: PathOrHubName
    text: str = "text"
    label: str = "label"
    labels: dict[str, str] | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class ClassificationSettings(
    _WindowedSource, _section_of(Classification, leave_out=[*_OBJECTS, "data", "questions"])
):
    """`Classification`."""

    kind: Literal["classification"]
    data: LabelledTextSettings
    questions: tuple[str, ...] | dict[str, tuple[str, ...]]


class OpenClassificationSettings(
    _WindowedSource, _section_of(OpenClassification, leave_out=[*_OBJECTS, "data", "questions"])
):
    """`OpenClassification`."""

    kind: Literal["open_classification"]
    data: LabelledTextSettings
    questions: tuple[str, ...]


class LatentQADataSettings(Section):
    """Arguments of `load_latentqa`."""

    folder: LocalPath
    kinds: tuple[LatentQAKind, ...] | None = None
    incomplete: Literal["error", "leave_out"] = "error"


class LatentQASettings(_WindowedSource, _section_of(LatentQA, leave_out=[*_OBJECTS, "data"])):
    """`LatentQA`."""

    kind: Literal["latentqa"]
    data: LatentQADataSettings


class SplitQASettings(_WindowedSource, _section_of(SplitQA, leave_out=[*_OBJECTS, "items"])):
    """`SplitQA`; `items` is a file that `read_split_qa` reads."""

    kind: Literal["split_qa"]
    items: LocalPath


class AbstentionSettings(_section_of(Abstention, leave_out=["sources"])):
    """`Abstention`."""

    kind: Literal["abstention"]
    sources: Annotated[tuple["SourceSettings", ...], Field(min_length=1)]


class CustomSettings(_Source):
    """A source of the caller's own: `factory(name=, tokenizer=, layers=, **arguments)`."""

    kind: Literal["custom"]
    name: str
    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    arguments: AnyMapping = Field(default_factory=dict)


SourceSettings = Annotated[
    ContextPredictionSettings
    | ClassificationSettings
    | OpenClassificationSettings
    | LatentQASettings
    | SplitQASettings
    | AbstentionSettings
    | CustomSettings,
    Field(discriminator="kind"),
]
AbstentionSettings.model_rebuild()


class PartSettings(Section):
    """`Part`."""

    source: SourceSettings
    share: Share | None = None
    count: Count | None = None
    repeats: Count = 1


class StageSettings(Section):
    """`Stage`."""

    parts: Annotated[tuple[PartSettings, ...], Field(min_length=1)]
    share: Share = 1.0


class DataSettings(Section):
    """`Mixture`, with `parts` or `stages`; `rollouts` are written first."""

    rollouts: tuple[RolloutSettings, ...] = ()
    parts: Annotated[tuple[PartSettings, ...], Field(min_length=1)] | None = None
    stages: Annotated[tuple[StageSettings, ...], Field(min_length=1)] | None = None
    validation: tuple[PartSettings, ...] = ()
    num_examples: Count | None = None
    seed: int = 0
    held_out: int | float = 0
    deduplicate: bool = True
    max_prompt_tokens: Count | None = None
    drop_longest: float = 0.0


class QuantizationSettings(Section):
    """Arguments of `BitsAndBytesConfig`, which takes any and keeps those that it knows."""

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: tuple[str, ...] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: (
        Literal["bfloat16", "float16", "float32", "float64", "int8", "uint8"] | None
    ) = None

    @model_validator(mode="after")
    def _choose_one(self) -> Self:
        if self.load_in_8bit == self.load_in_4bit:
            raise ValueError("set one of load_in_8bit and load_in_4bit")
        return self

    def config(self) -> BitsAndBytesConfig:
        """The object of transformers."""
        values = self.model_dump(exclude_none=True)
        if self.llm_int8_skip_modules is not None:
            values["llm_int8_skip_modules"] = list(self.llm_int8_skip_modules)
        return BitsAndBytesConfig(**values)


class ModelSettings(Section):
    """The base; arguments of `TracedModel.from_pretrained`, and what contracts call it."""

    path_or_id: PathOrHubName
    name: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = "auto"
    device: str | None = None
    quantization_config: QuantizationSettings | None = None


class ContractSettings(
    _section_of(
        OracleContract,
        leave_out=[
            *("base_model", "base_revision", "base_digest", "tokenizer_digest"),  # of the model
            *("placeholder_id", "neighbour_ids", "read_fractions"),  # follow from it
            *("transform", "transform_digest", "collection_adapter"),
            *("lora_rank", "lora_alpha", "rslora", "training_data"),  # of the run
            *("aotoolkit_version", "schema_version"),
            *("read_layers", "inject_layer", "coefficient", "chat_template_kwargs", "extra"),
        ],
    )
):
    """`OracleContract`, as far as a recipe decides it; layers may be fractions of depth."""

    read_layers: Annotated[tuple[Depth, ...], Field(min_length=1)]
    inject_layer: Depth
    coefficient: float
    chat_template_kwargs: AnyMapping = Field(default_factory=dict)
    extra: AnyMapping = Field(default_factory=dict)


class TransformSettings(Section):
    """What is done to vectors first, and which of the base's texts its statistics are of.

    They are of the contexts that `source` draws, or of the mixture's first; and for the contract's
    layers, or for more of them, so that an oracle may be asked about these too.
    """

    kind: Transform = "none"
    num_contexts: Count = 2000
    source: SourceSettings | None = None
    layers: tuple[Depth, ...] | None = None


class TrainingSettings(
    _section_of(TrainingConfig, leave_out=["output_dir", "progress", "extra_arguments"])
):
    """`TrainingConfig`; without `output_dir` a run goes to runs/ and the recipe's name."""

    output_dir: Annotated[str, AfterValidator(_path_to_write)] | None = None
    extra_arguments: AnyMapping = Field(default_factory=dict)


class RecipeSettings(Section):
    """A whole recipe."""

    model: ModelSettings
    contract: ContractSettings
    transform: TransformSettings = TransformSettings()
    data: DataSettings
    training: TrainingSettings
