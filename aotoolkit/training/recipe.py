"""Recipes: a whole training run in one YAML file.

    model:     the base
    contract:  how prompts are written and vectors injected
    transform: what is done to the vectors first
    data:      the mixture
    training:  the run

A recipe is checked from end to end before a model is loaded: its keys and types, the files that it
names, what is in them, the placeholder with the base's tokenizer. What is wrong is said with file,
line and key.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

import aotoolkit
from aotoolkit.data.abstention import Abstention
from aotoolkit.data.classification import Classification, OpenClassification
from aotoolkit.data.context_prediction import ContextPrediction
from aotoolkit.data.example import Example
from aotoolkit.data.latentqa import LatentQA, load_latentqa
from aotoolkit.data.mixture import BuiltMixture, Mixture, Part, Stage, is_built
from aotoolkit.data.on_policy import OnPolicyTexts, check_rollouts, rollouts
from aotoolkit.data.source import LayerChoice, Source
from aotoolkit.data.split_qa import SplitQA, read_split_qa
from aotoolkit.data.table import read_labelled_texts
from aotoolkit.data.texts import TextSpec
from aotoolkit.data.window import Window
from aotoolkit.errors import AOToolkitError, RecipeError
from aotoolkit.oracle.contract import OracleContract, Transform
from aotoolkit.oracle.prompt import describe_tokenizer, render_prompt
from aotoolkit.oracle.transform import (
    MappedByToken,
    MappedExample,
    VectorTransform,
    fit_mapping,
    fit_mapping_by_token,
    fit_transform,
)
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import resolve_layers
from aotoolkit.tracing.digest import tokenizer_digest
from aotoolkit.tracing.model import packaged_path
from aotoolkit.training.activation_cache import CACHE_FILE, ActivationCache
from aotoolkit.training.config import TrainingConfig, check_reporting
from aotoolkit.training.reading import ContextRead, read_contexts
from aotoolkit.training.recipe_schema import RecipeSettings, RolloutSettings
from aotoolkit.training.trainer import TrainingResult, train_oracle
from aotoolkit.training.yaml_lines import Keys, YamlFile, read_yaml

if TYPE_CHECKING:
    from aotoolkit.training.estimate import TrainingEstimate

# Of what a fit writes: raised when that changes, so that a run that goes on fits again.
FITTED_STATISTICS = 2
# What an oracle is asked, wherever it stands in a recipe.
_QUESTION_KEYS = {"questions", "past_question", "future_question"}
_DATA_CLASSES: dict[str, Callable[..., Source]] = {
    "context_prediction": ContextPrediction,
    "classification": Classification,
    "open_classification": OpenClassification,
    "latentqa": LatentQA,
    "split_qa": SplitQA,
    "abstention": Abstention,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe that was read and whose keys, types and files are right; see `load_recipe`.

    Attributes:
        settings: what it says.
        file: where it says so.
    """

    settings: RecipeSettings
    file: YamlFile

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    def with_base(self, path_or_id: str | Path) -> "Recipe":
        """The same recipe for another base."""
        model = self.settings.model.model_copy(update={"path_or_id": str(path_or_id)})
        return dataclasses.replace(self, settings=self.settings.model_copy(update={"model": model}))

    # What it says, as objects of the package

    def output_dir(self, given: str | Path | None = None) -> Path:
        """Where a run goes: what is given, what the recipe says, or runs/ and its name."""
        return Path(given or self.settings.training.output_dir or f"runs/{self.path.stem}")

    def training_config(
        self, *, output_dir: str | Path | None = None, progress: bool = True
    ) -> TrainingConfig:
        """The section `training`.

        Raises:
            RecipeError: A value is out of range.
        """
        values = _given(self.settings.training)
        values["output_dir"] = self.output_dir(output_dir)
        with self._at("training"):
            return TrainingConfig(**values, progress=progress)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        model = self.settings.model
        source = packaged_path(model.path_or_id)
        return AutoTokenizer.from_pretrained(source, revision=model.revision)

    def num_layers(self) -> int:
        """How many blocks the base has, from its config."""
        model = self.settings.model
        source = packaged_path(model.path_or_id)
        config = AutoConfig.from_pretrained(source, revision=model.revision)
        return config.get_text_config().num_hidden_layers

    def contract(self, tokenizer: PreTrainedTokenizerBase, num_layers: int) -> OracleContract:
        """The section `contract` for a base with this tokenizer, without its weights' digest.

        Raises:
            RecipeError: A field is not allowed, a layer is not there, the placeholder is not one
                token, or it stands in a question.
        """
        section = self.settings.contract
        with self._at("contract", "read_layers"):
            read_layers = resolve_layers(section.read_layers, num_layers)
        with self._at("contract", "inject_layer"):
            (inject_layer,) = resolve_layers(section.inject_layer, num_layers)
        with self._at("contract"):
            contract = OracleContract(
                **_given(section) | {"read_layers": read_layers, "inject_layer": inject_layer},
                base_model=self.settings.model.name or self.settings.model.path_or_id,
                base_revision=self.settings.model.revision,
                read_fractions=tuple(layer / num_layers for layer in read_layers),
                transform=self.settings.transform.kind,
                aotoolkit_version=aotoolkit.__version__,
            )
        self._refuse_placeholder_in_questions(contract.placeholder)
        with self._at("contract", "placeholder"):
            return describe_tokenizer(contract, tokenizer)

    def mixture(self, tokenizer: PreTrainedTokenizerBase, num_layers: int) -> Mixture:
        """The section `data`, its files read, its examples not drawn.

        Raises:
            RecipeError: The data of a source cannot be used, or shares and counts do not add up.
        """
        data = self.settings.data
        if (data.parts is None) == (data.stages is None):
            raise RecipeError(f"{self.file.at(('data',))}: give either parts or stages.")
        read_layers = self.contract(tokenizer, num_layers).read_layers

        def parts(settings: Sequence[Any], *keys: str | int) -> tuple[Part, ...]:
            made = []
            for index, part in enumerate(settings):
                here = ("data", *keys, index)
                source = self._source(
                    part.source, (*here, "source"), tokenizer, num_layers, read_layers
                )
                with self._at(*here):
                    made.append(
                        Part(source, share=part.share, count=part.count, repeats=part.repeats)
                    )
            return tuple(made)

        if data.parts is not None:
            key, mixed = "parts", parts(data.parts, "parts")
        else:
            assert data.stages is not None
            key, mixed = "stages", []
            for index, stage in enumerate(data.stages):
                made = parts(stage.parts, "stages", index, "parts")
                with self._at("data", "stages", index):
                    mixed.append(Stage(made, share=stage.share))
        validation = parts(data.validation, "validation")
        with self._at("data", key):
            return Mixture(
                mixed,
                num_examples=data.num_examples,
                seed=data.seed,
                held_out=data.held_out,
                validation=validation,
                deduplicate=data.deduplicate,
                max_prompt_tokens=data.max_prompt_tokens,
                drop_longest=data.drop_longest,
            )

    def _source(
        self,
        settings: Any,
        keys: Keys,
        tokenizer: PreTrainedTokenizerBase,
        num_layers: int,
        read_layers: tuple[int, ...],
    ) -> Source:
        values = _given(settings, leave_out={"kind", "layers"})
        if settings.kind == "abstention":
            values["sources"] = tuple(
                self._source(inner, (*keys, "sources", i), tokenizer, num_layers, read_layers)
                for i, inner in enumerate(settings.sources)
            )
            with self._at(*keys):
                return Abstention(**values)
        with self._at(*keys, "layers"):
            named = settings.layers.read_layers
            chosen = read_layers if named is None else resolve_layers(named, num_layers)
            if unread := sorted(set(chosen) - set(read_layers)):
                raise RecipeError(
                    f"layers {unread} are not among contract.read_layers, blocks "
                    f"{list(read_layers)}."
                )
            values["layers"] = LayerChoice(tuple(sorted(chosen)), settings.layers.mode)
        with self._at(*keys):
            if values.get("window"):
                values["window"] = Window(**values["window"])
            if settings.kind == "context_prediction":
                values["texts"] = TextSpec(**values["texts"])
            elif settings.kind in ("classification", "open_classification"):
                values["data"] = read_labelled_texts(**values["data"])
            elif settings.kind == "latentqa":
                values["data"] = load_latentqa(**values["data"])
            elif settings.kind == "split_qa":
                values["items"] = read_split_qa(values["items"])
            elif settings.kind == "custom":
                return _custom_source(tokenizer=tokenizer, **values)
            return _DATA_CLASSES[settings.kind](tokenizer=tokenizer, **values)

    def _refuse_placeholder_in_questions(self, placeholder: str) -> None:
        for keys, text in _texts(self.file.values):
            if _QUESTION_KEYS & set(keys) and placeholder in text:
                raise RecipeError(
                    f"{self.file.at(keys)}: the placeholder {placeholder!r} stands in this "
                    f"question ({text!r}), so vectors could be taken to go there. Write the "
                    "question without it, or choose another contract.placeholder."
                )

    @contextlib.contextmanager
    def _at(self, *keys: str | int) -> Iterator[None]:
        """Says where in the recipe it stands when something in it is refused."""
        try:
            yield
        except RecipeError as error:
            # A recipe may include another, which is named then.
            files = {str(path) for path, _ in self.file.lines.values()}
            if str(error).startswith(tuple(files)):
                raise
            raise RecipeError(f"{self.file.at(keys)}: {error}") from error
        except (AOToolkitError, ValueError) as error:
            # Errors about one setting begin with its name.
            first = str(error).split(" ", 1)[0].rstrip(":")
            deeper = (*keys, *first.split("."))
            keys = deeper if deeper in self.file.lines else keys
            raise RecipeError(f"{self.file.at(keys)}: {error}") from error

    # Doing what it says

    def check(self) -> tuple[PreTrainedTokenizerBase, OracleContract, Mixture | None]:
        """All that can be wrong with it, without its model; see `load_recipe`.

        Returns:
            Tokenizer, contract (without the digest of the base's weights) and mixture; no mixture
            where it reads rollouts that are still to be written.
        """
        self.training_config()
        tokenizer, num_layers = self.tokenizer(), self.num_layers()
        contract = self.contract(tokenizer, num_layers)
        self._transform_layers(num_layers, contract.read_layers)
        self._check_rollouts()
        if not self._rollouts_are_written():
            return tokenizer, contract, None
        self._transform_source(tokenizer, num_layers, contract.read_layers)
        return tokenizer, contract, self.mixture(tokenizer, num_layers)

    def load_model(self) -> TracedModel:
        """The base, on this process's accelerator."""
        settings = self.settings.model
        values = _given(settings, leave_out={"path_or_id", "name", "quantization_config"})
        if settings.quantization_config is not None:
            with self._at("model", "quantization_config"):
                if importlib.util.find_spec("bitsandbytes") is None:
                    raise RecipeError("bitsandbytes is not installed: pip install bitsandbytes.")
                values["quantization_config"] = settings.quantization_config.config()
        if settings.device is None and torch.accelerator.is_available():
            torch.accelerator.set_device_index(_local_rank())
        return TracedModel.from_pretrained(settings.path_or_id, **values)

    def build(
        self,
        folder: str | Path,
        *,
        model: TracedModel | None = None,
        progress: bool = True,
    ) -> BuiltMixture:
        """Writes the rollouts that are asked for, then builds the mixture; or opens what is there.

        Of several processes the main one writes rollouts, and the first of each machine builds;
        the others wait for them.

        Args:
            folder: of the mixture alone.
            model: writes rollouts; loaded if it is needed and not given.
            progress: show bars.
        """
        tokenizer, contract, mixture = self.check()
        if mixture is None:
            self._write_rollouts(model, progress=progress)
            mixture = self.mixture(tokenizer, self.num_layers())
        length = RenderedLength(tokenizer, contract)
        if _local_rank():
            settings = mixture.settings(tokenizer, length)
            _wait_until(lambda: is_built(folder, settings))
        return mixture.build(folder, tokenizer=tokenizer, progress=progress, prompt_length=length)

    def _rollouts_are_written(self) -> bool:
        return all(Path(request.path).exists() for request in self.settings.data.rollouts)

    def _check_rollouts(self, model: TracedModel | None = None) -> None:
        for index, request in enumerate(self.settings.data.rollouts):
            with self._at("data", "rollouts", index):
                check_rollouts(_wanted_texts(request), request.path, model=model)

    def _write_rollouts(self, model: TracedModel | None, *, progress: bool) -> None:
        if not is_main_process():
            _wait_until(self._rollouts_are_written)
            return
        model = model or self.load_model()
        for index, request in enumerate(self.settings.data.rollouts):
            with self._at("data", "rollouts", index):
                rollouts(model, _wanted_texts(request), request.path, progress=progress)

    def transform(
        self, model: TracedModel, mixture: BuiltMixture, contract: OracleContract, folder: Path
    ) -> VectorTransform:
        """The section `transform`, fitted; or as `folder` has it.

        The main process fits and writes, the others wait and read, so that all have one.
        """
        section = self.settings.transform
        if section.kind == "none":
            return VectorTransform()
        layers = self._transform_layers(model.num_layers, contract.read_layers)
        source = self._transform_source(model.tokenizer, model.num_layers, contract.read_layers)
        if source is None:
            examples: Iterable[Example] = mixture.train
            texts: object = [entry["digest"] for entry in mixture.manifest]
        else:
            examples = itertools.chain.from_iterable(source.groups(self.settings.data.seed))
            texts = source.describe()
        wanted = {
            "statistics": FITTED_STATISTICS,
            "kind": section.kind,
            "layers": layers,
            "num_contexts": section.num_contexts,
            "base_digest": model.base_digest,
            "texts": texts,
            "seed": self.settings.data.seed,
            "tokenizer": tokenizer_digest(model.tokenizer),
        }
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        fitted = folder / digest[:16]
        if not is_main_process():
            _wait_until(fitted.is_dir)
        elif not fitted.is_dir():
            if section.kind in ("mapped", "mapped_by_token", "mapped_pooled", "mapped_recalled"):
                # Those that abstain are not about what stands there.
                about = (example for example in examples if example.evidence == "read")
                taken = list(itertools.islice(about, section.num_contexts))
                transform = _fit_mapping(section.kind, taken, layers, model)
            else:
                contexts = _first_contexts(examples, section.num_contexts)
                transform = _fit(section.kind, contexts, layers, model)
            unfinished = folder / f".{digest[:16]}.unfinished"
            unfinished.mkdir(parents=True, exist_ok=True)
            transform.save(unfinished)
            os.rename(unfinished, fitted)
        return VectorTransform.load(fitted)

    def _transform_layers(self, num_layers: int, read_layers: tuple[int, ...]) -> tuple[int, ...]:
        """The layers that a transform is fitted for."""
        with self._at("transform", "layers"):
            layers = resolve_layers(self.settings.transform.layers or read_layers, num_layers)
            if missing := sorted(set(read_layers) - set(layers)):
                raise RecipeError(f"the contract reads the layers {missing} too; add them.")
        return tuple(sorted(layers))

    def _transform_source(
        self, tokenizer: PreTrainedTokenizerBase, num_layers: int, read_layers: tuple[int, ...]
    ) -> Source | None:
        """The texts that a transform is fitted to; None for those of the mixture."""
        settings = self.settings.transform.source
        if settings is None:
            return None
        keys = ("transform", "source")
        return self._source(settings, keys, tokenizer, num_layers, read_layers)

    def run(self, *, output_dir: str | Path | None = None, progress: bool = True) -> TrainingResult:
        """Trains the oracle, or goes on where a stopped run was.

        Raises:
            RecipeError: The recipe cannot be used; before its model is loaded.
            Others: see `train_oracle`.
        """
        if is_main_process():
            with self._at("training", "report_to"):
                check_reporting(self.training_config())
        prepared = self.prepare(output_dir=output_dir, progress=progress)
        return train_oracle(
            prepared.model,
            prepared.mixture,
            prepared.config,
            contract=prepared.contract,
            transform=prepared.transform,
            cache=prepared.cache,
        )

    def estimate(
        self, *, output_dir: str | Path | None = None, progress: bool = True
    ) -> "TrainingEstimate":
        """Time and memory of the run, from a few timed steps."""
        from aotoolkit.training.estimate import estimate

        prepared = self.prepare(output_dir=output_dir, progress=progress)
        return estimate(
            prepared.model,
            prepared.mixture,
            prepared.config,
            contract=prepared.contract,
            transform=prepared.transform,
            cache=prepared.cache,
        )

    def mixture_folder(self, output_dir: str | Path | None = None) -> Path:
        """Where `run` builds the mixture."""
        return self.output_dir(output_dir) / "mixture"

    def mixture_of(self, oracle: Path, *, progress: bool = True) -> BuiltMixture:
        """The mixture that an oracle of this recipe was trained on.

        It lies beside the oracle, wherever the run was; where there is none, or one of other
        settings, it is that of `mixture_folder`, which is built first.
        """
        tokenizer, contract, mixture = self.check()
        beside = oracle.parent / "mixture"
        length = RenderedLength(tokenizer, contract)
        if mixture is not None and is_built(beside, mixture.settings(tokenizer, length)):
            return BuiltMixture.open(beside)
        return self.build(self.mixture_folder(), progress=progress)

    def cache_folder(self, output_dir: str | Path | None = None) -> Path:
        """Where `run` looks for activations."""
        return self.output_dir(output_dir) / "activations"

    def open(
        self, *, output_dir: str | Path | None = None, progress: bool = True
    ) -> tuple[TracedModel, BuiltMixture]:
        """The base, and the mixture that `run` trains on; the mixture is built first."""
        model = None
        if not self._rollouts_are_written():
            self.check()
            model = self.load_model()
        built = self.build(self.mixture_folder(output_dir), model=model, progress=progress)
        model = model or self.load_model()
        self._check_rollouts(model)
        return model, built

    def prepare(
        self, *, output_dir: str | Path | None = None, progress: bool = True
    ) -> "PreparedRun":
        """All that `train_oracle` is called with."""
        config = self.training_config(output_dir=output_dir, progress=progress)
        model, built = self.open(output_dir=output_dir, progress=progress)
        contract = self.contract(model.tokenizer, model.num_layers)
        transform = self.transform(model, built, contract, config.output_dir / "transform")
        contract = dataclasses.replace(
            contract,
            base_model=self.settings.model.name or model.name,
            base_digest=model.base_digest,
            transform_digest=None if transform.kind == "none" else transform.digest,
        )
        cached = self.cache_folder(output_dir)
        cache = ActivationCache(cached) if (cached / CACHE_FILE).exists() else None
        return PreparedRun(model, built, config, contract, transform, cache)


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """The arguments of `train_oracle`."""

    model: TracedModel
    mixture: BuiltMixture
    config: TrainingConfig
    contract: OracleContract
    transform: VectorTransform
    cache: ActivationCache | None


class RenderedLength:
    """Counts the tokens of whole prompts, as the contract writes them; a `PromptLength`.

    Args:
        tokenizer: the base's.
        contract: how prompts are written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: OracleContract) -> None:
        self._tokenizer = tokenizer
        self._contract = contract
        written = [
            contract.dialect,
            contract.prefix_template,
            contract.placeholder,
            dict(contract.chat_template_kwargs),
        ]
        self.digest = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()

    def __call__(self, example: Example) -> int:
        """Tokens of an example's prompt and answer; refuses what no prompt can be made of."""
        prompt = render_prompt(
            self._tokenizer,
            self._contract,
            example.question,
            layers=example.layers,
            num_positions=len(example.positions),
            answer=example.answer,
        )
        return len(prompt.token_ids)


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe and checks its keys, types and files.

    What needs the tokenizer (the placeholder) or the contents of the data (labels without both
    classes, shares that add up to nothing) is checked by `Recipe.check`, which `Recipe.run` calls
    before it loads a model.

    Raises:
        RecipeError: `file:line: key: what is there, what is allowed`, a line for each.
    """
    file = read_yaml(path)
    folder = file.path.parent
    requests = file.values.get("data", {})
    written = set()
    if isinstance(requests, dict) and isinstance(requests.get("rollouts"), tuple):
        for request in requests["rollouts"]:
            if isinstance(request, dict) and isinstance(request.get("path"), str):
                written.add(folder / Path(request["path"]).expanduser())
    try:
        settings = RecipeSettings.model_validate(
            dict(file.values), context={"folder": folder, "written": written}
        )
    except ValidationError as error:
        errors = error.errors()
        # A list with a broken element is also reported as too short, which says nothing.
        lines = [
            _said(file, details)
            for details in errors
            if not any(_is_within(other["loc"], details["loc"]) for other in errors)
        ]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error
    recipe = Recipe(settings, file)
    recipe.training_config()
    return recipe


def is_main_process() -> bool:
    """Whether this process prints and writes, of all that `accelerate launch` started."""
    return int(os.environ.get("RANK", "0")) == 0


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _wait_until(ready: Callable[[], bool]) -> None:
    """Waits for another process: longer than any barrier, and the launcher ends us with it."""
    while not ready():
        time.sleep(0.5)


def _wanted_texts(request: RolloutSettings) -> OnPolicyTexts:
    values = _given(request, leave_out={"path", "prompts"})
    return OnPolicyTexts(**values, prompts=TextSpec(**_given(request.prompts)))


def _custom_source(*, factory: str, arguments: dict[str, Any], **values: Any) -> Source:
    module, name = factory.split(":")
    try:
        return getattr(importlib.import_module(module), name)(**values, **arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"factory {factory!r} cannot be called with {', '.join([*values, *arguments])}: {error}"
        ) from error


def _first_contexts(examples: Iterable[Example], count: int) -> list[tuple[int, ...]]:
    contexts: dict[tuple[int, ...], None] = {}
    for example in examples:
        contexts[example.context_ids] = None
        if len(contexts) == count:
            break
    return list(contexts)


def _fit(
    kind: Transform,
    contexts: Sequence[tuple[int, ...]],
    layers: tuple[int, ...],
    model: TracedModel,
) -> VectorTransform:
    reads = [ContextRead(ids, layers, tuple(range(len(ids)))) for ids in contexts]
    return fit_transform(
        kind,
        # Statistics are summed on the CPU, in double precision.
        ((vectors.cpu(), read.context_ids) for read, vectors in read_contexts(model, reads)),
        layers=layers,
        vocabulary_size=len(model.tokenizer),
    )


def _fit_mapping(
    kind: Literal["mapped"] | MappedByToken,
    examples: Sequence[Example],
    layers: tuple[int, ...],
    model: TracedModel,
) -> VectorTransform:
    """The map from what each example reads, at all `layers`, to the embedding of its answer."""
    answers: dict[ContextRead, str] = {}
    for example in examples:
        answers[ContextRead(example.context_ids, layers, example.positions)] = example.answer
    embed = model.hf_model.get_input_embeddings()

    def embedding(ids: Iterable[int]) -> torch.Tensor:
        with torch.no_grad():
            return embed(torch.tensor(list(ids), device=model.device)).mean(0).cpu()

    tokens = {
        text: model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in dict.fromkeys(answers.values())
    }
    vectors = ((read, values.cpu()) for read, values in read_contexts(model, list(answers)))
    if kind == "mapped":
        return fit_mapping(
            ((values, embedding(tokens[answers[read]])) for read, values in vectors), layers=layers
        )
    keys = _shared_tokens(tokens)
    return fit_mapping_by_token(
        kind,
        (
            MappedExample(
                values,
                [read.context_ids[p] for p in read.positions],
                embedding(tokens[answers[read]]),
                embedding(keys[answers[read]]),
            )
            for read, values in vectors
        ),
        layers=layers,
        vocabulary_size=len(model.tokenizer),
    )


def _shared_tokens(tokens: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Of each answer the different tokens that another has too; all of them where there is none."""
    holders = Counter(token for ids in tokens.values() for token in set(ids))
    return {
        text: [t for t in sorted(set(ids)) if holders[t] > 1] or sorted(set(ids))
        for text, ids in tokens.items()
    }


def _given(section: BaseModel, *, leave_out: set[str] | None = None) -> dict[str, Any]:
    """What a section says or has by default, as arguments; nothing for None."""
    values = section.model_dump(exclude=leave_out)
    return {name: value for name, value in values.items() if value is not None}


def _texts(values: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(values, str):
        yield keys, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(value, (*keys, key))
    elif isinstance(values, tuple):
        for index, value in enumerate(values):
            yield from _texts(value, (*keys, index))


def _is_within(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _said(file: YamlFile, error: Any) -> str:
    """One line for one error of pydantic."""
    keys, value = _place(file.values, error["loc"])
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "unknown_key":
        return f"{file.at((*keys, context['key']))}: unknown key{_nearest(context)}"
    if kind == "missing":
        return f"{file.at(keys[:-1])}: the key {keys[-1]!r} is missing."
    if kind == "no_file":
        return (
            f"{file.at(keys)}: there is no file or folder {context['path']}; paths are relative to "
            "the recipe."
        )
    if kind == "union_tag_not_found":
        return f"{file.at(keys)}: the key 'kind' is missing; allowed are {_kinds()}."
    if kind == "union_tag_invalid":
        nearest = _nearest({"key": context["tag"], "allowed": sorted(_SOURCE_KINDS)})
        return f"{file.at((*keys, 'kind'))}: {context['tag']!r} is no kind of source{nearest}"
    rule = error["msg"].replace("Input should be", "it must be").replace("Value error, ", "")
    hint = ""
    if kind == "string_type" and isinstance(value, int | float | bool):
        hint = f', so quote it: "{value}"'
    return f"{file.at(keys)}: {value!r} is not allowed; {rule}{hint}."


_SOURCE_KINDS = {*_DATA_CLASSES, "custom"}


def _kinds() -> str:
    return ", ".join(sorted(_SOURCE_KINDS))


def _nearest(context: dict[str, Any]) -> str:
    near = difflib.get_close_matches(context["key"], context["allowed"], n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return f"{guess} Allowed are {', '.join(context['allowed'])}."


def _place(values: Any, location: tuple[str | int, ...]) -> tuple[Keys, Any]:
    """The keys of a recipe that pydantic means: its path also names members of unions."""
    keys: list[str | int] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(values, dict):
            if step in values:
                keys.append(step)
                values = values[step]
            elif last and step not in _SOURCE_KINDS:
                keys.append(step)  # a key that is missing
        elif isinstance(values, tuple) and isinstance(step, int) and step < len(values):
            keys.append(step)
            values = values[step]
    return tuple(keys), values
