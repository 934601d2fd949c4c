"""Scaling curves in the embedded world: oracles of growing data, on bases of several sizes.

Each run trains one oracle by the same recipe, on so many examples, each once: so with the data the
steps grow, as in the curves of LatentQA (arXiv 2412.08686). What is scored is the same for all of
them: examples of the recipe's kinds whose contexts no run trains on (held-out loss), and secrets
whose word is never one in training (word score), each with and without activations.

A call that was stopped goes on: bases and runs that are whole are left alone, a run that is not
goes on from its last checkpoint.
"""

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tqdm.auto import tqdm
from transformers import AutoTokenizer

from aotoolkit.atomic import replacing
from aotoolkit.data import BuiltMixture, Example
from aotoolkit.errors import RecipeError, RunMismatchError, TrainingSettingsError
from aotoolkit.evals.scaling import (
    ScalingPoint,
    ScalingResult,
    ScalingRun,
    ScalingScore,
    Scored,
    scaling_point,
)
from aotoolkit.nano.base import examine_base, train_base
from aotoolkit.nano.build import RECIPE, load_base
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.world import load_world
from aotoolkit.oracle import Oracle
from aotoolkit.training import Recipe, load_recipe, train_oracle
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.validation import score_examples
from aotoolkit.training.yaml_lines import read_yaml

Dialect = Literal["activation_oracle", "latentqa"]

# The documents that the base that ships has read.
BASE_DOCUMENTS = 250_000
SIZES = (6_000, 12_000, 24_000, 48_000, 96_000)
# Examples of each of the two figures.
SCORED = 960

# What a recipe's contract becomes for the other dialect; the first as `nano.yaml` has it, the
# second as in the published code of LatentQA.
_CONTRACTS: Mapping[Dialect, Mapping[str, Any]] = {
    "activation_oracle": {
        "dialect": "activation_oracle",
        "prefix_template": "Layer: {layer}\n{placeholders} \n",
        "inject_layer": 1,
        "formula": "add_norm_matched",
        "position_ids": "from_mask",
    },
    "latentqa": {
        "dialect": "latentqa",
        "prefix_template": "{placeholders}",
        "inject_layer": 0,
        "formula": "replace",
        "position_ids": "shifted",
    },
}
SETTINGS_FILE = "settings.json"
# Beside the names of sources that a recipe validates on.
_SCORED_PREFIX = "scored_"
_WORD_KIND = "_word"


@dataclass(frozen=True, kw_only=True)
class BaseSize:
    """The size of a base.

    Attributes:
        width: a multiple of 64.
        blocks: at least 4, so that there are blocks above the injection at 25 % of depth.

    Raises:
        TrainingSettingsError: another width or number of blocks.
    """

    width: int
    blocks: int

    def __post_init__(self) -> None:
        if self.width < 64 or self.width % 64 or self.blocks < 4:
            raise TrainingSettingsError(
                f"A base of width {self.width} with {self.blocks} blocks cannot be made; give a "
                "width that is a multiple of 64, and at least 4 blocks."
            )

    def __str__(self) -> str:
        return f"{self.width}x{self.blocks}"

    @classmethod
    def of(cls, text: str) -> Self:
        """From "128x8".

        Raises:
            TrainingSettingsError: it is something else.
        """
        found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
        if found is None:
            raise TrainingSettingsError(
                f"{text!r} is no size of a base; give width and blocks, such as 128x8."
            )
        return cls(width=int(found[1]), blocks=int(found[2]))


SHIPPED = BaseSize(width=128, blocks=8)
BASES = (BaseSize(width=64, blocks=8), SHIPPED, BaseSize(width=192, blocks=8))
# A minute that shows that all of it works, and nothing about scaling.
QUICK: Mapping[str, Any] = {
    "sizes": (32, 64, 96, 128, 160),
    "base_documents": 320,
    "scored": 48,
    "transform_contexts": 64,
    "examine_bases": False,
}


def run(
    out: str | Path,
    *,
    recipe: str | Path = RECIPE,
    dialect: Dialect | None = None,
    sizes: Sequence[int] = SIZES,
    bases: Sequence[BaseSize] = BASES,
    base_documents: int = BASE_DOCUMENTS,
    seeds: Sequence[int] = (0,),
    scored: int = SCORED,
    transform_contexts: int | None = None,
    examine_bases: bool = True,
    progress: bool = True,
) -> ScalingResult:
    """Trains and scores an oracle for each base, size and seed, or goes on where a call stopped.

    Args:
        out: folder of the bases, the oracles, `runs/` (each one's scores) and `scaling.json`. More
            sizes, bases and seeds may be asked for later.
        recipe: of the oracles, on the embedded world: its own base, number of examples and steps
            are replaced, its layers taken as fractions of depth.
        dialect: writes prompts and injects as this dialect does; as the recipe says by default.
        sizes: numbers of training examples, each at least a batch.
        bases: the one that ships is taken as it is, where it would be trained on as many documents.
        base_documents: that bases are trained on.
        seeds: of the oracles' weights and of the order of examples. The examples are the same.
        scored: examples of each figure.
        transform_contexts: that a vector transform is fitted on; as the recipe says by default.
        examine_bases: ask each new base what it knows of what its documents held out; takes longer
            than a very small base takes to train.
        progress: show bars.

    Raises:
        RecipeError: the recipe cannot be used, or validates on no question for a hidden word.
        RunMismatchError: `out` holds runs of other settings.
        TrainingSettingsError: a size is below one batch, or there is nothing to run.
    """
    root = Path(out)
    loaded = load_recipe(recipe)
    if not sizes or not bases or not seeds or scored < 1:
        raise TrainingSettingsError(
            "Give at least one size, one base, one seed and one example to score."
        )
    batch_size = loaded.settings.training.batch_size
    if too_small := [size for size in sizes if size < batch_size]:
        raise TrainingSettingsError(
            f"{too_small[0]} examples are less than one batch of {batch_size}; give more."
        )
    _refuse_parts_of_ones_own(loaded)
    settings = {
        "recipe": loaded.path.name,
        # With what it includes.
        "recipe_digest": _digest_of(read_yaml(loaded.path).values),
        "shipped_base": _digest_of_file(WEIGHTS / "base" / "model.safetensors"),
        "dialect": dialect or loaded.settings.contract.dialect,
        "base_documents": base_documents,
        "scored": scored,
        "transform_contexts": transform_contexts,
    }
    _check_settings(root / SETTINGS_FILE, settings)
    wanted = [(base, size) for base in bases for size in sizes]
    with tqdm(
        total=len(wanted) * len(seeds), desc="scaling", unit="oracle", disable=not progress
    ) as bar:
        for base, size in wanted:
            folder = _base(root, base, base_documents, examine=examine_bases)
            for seed in seeds:
                path = _run_file(root, base, size, seed)
                if not path.is_file():
                    prepared = _with_settings(
                        loaded.with_base(folder),
                        base=base,
                        dialect=dialect,
                        size=size,
                        seed=seed,
                        scored=scored,
                        transform_contexts=transform_contexts,
                    )
                    _train_and_score(
                        prepared, root / "oracles" / path.stem, base=base, size=size, seed=seed
                    ).save(path)
                bar.update()
            # What is there can be plotted while the rest is running.
            _what_is_there(root, wanted, seeds, settings).save(root)
    return _what_is_there(root, wanted, seeds, settings)


def _run_file(root: Path, base: BaseSize, size: int, seed: int) -> Path:
    return root / "runs" / f"{base}-{size}-seed{seed}.json"


def _what_is_there(
    root: Path,
    wanted: Sequence[tuple[BaseSize, int]],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> ScalingResult:
    """The wanted points of which every seed's run is finished, in this call or one before."""
    points: list[ScalingPoint] = []
    bases: dict[str, dict[str, float]] = {}
    for base, size in wanted:
        files = [_run_file(root, base, size, seed) for seed in seeds]
        if all(file.is_file() for file in files):
            points.append(scaling_point([ScalingRun.load(file) for file in files]))
            folder = _base_folder(root, base, settings["base_documents"])
            bases[str(base)] = json.loads((folder / "examined.json").read_text())
    return ScalingResult.of(points, settings=settings, bases=bases)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if differ := [name for name in settings if there.get(name) != settings[name]]:
            listed = "; ".join(
                f"{name} was {there.get(name)!r}, now {settings[name]!r}" for name in differ
            )
            raise RunMismatchError(
                f"{path.parent} holds runs of other settings: {listed}. Choose another folder, or "
                "the settings that they were made with."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _base_folder(root: Path, size: BaseSize, documents: int) -> Path:
    if size == SHIPPED and documents == BASE_DOCUMENTS:
        return WEIGHTS / "base"
    return root / "bases" / str(size)


def _base(root: Path, size: BaseSize, documents: int, *, examine: bool) -> Path:
    """The folder of a base, trained if it is not there yet."""
    folder = _base_folder(root, size, documents)
    if folder.is_dir():
        return folder
    world = load_world()
    # The same for all bases, so that all oracles are scored on the same tokens.
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
    checkpoints = root / "checkpoints" / str(size)
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # Trainer prints its figures; stdout is for reports
        model = train_base(
            world,
            tokenizer,
            checkpoints,
            documents=documents,
            width=size.width,
            blocks=size.blocks,
        )
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.half().save_pretrained(str(temporary))  # as the one that ships
    tokenizer.save_pretrained(str(temporary))
    figures = examine_base(load_base(temporary), tokenizer, world) if examine else {}
    (temporary / "examined.json").write_text(json.dumps(figures, indent=2) + "\n")
    temporary.rename(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return folder


def _refuse_parts_of_ones_own(recipe: Recipe) -> None:
    """Only sources without an end can be drawn from for any size, and again for scoring."""
    data = recipe.settings.data
    parts = [*(data.parts or ()), *(part for stage in data.stages or () for part in stage.parts)]
    if other := [part.source for part in parts if part.source.kind != "custom"]:
        raise RecipeError(
            f"{recipe.path}: the source {other[0].name!r} is of kind {other[0].kind!r}. Scaling "
            "curves are about the embedded world: give a recipe whose sources are of kind custom, "
            "such as recipes/nano.yaml."
        )
    if not data.validation:
        raise RecipeError(
            f"{recipe.path}: data.validation is empty, so there is no score of a task. Name a "
            "source there that asks for hidden words, as recipes/nano.yaml does."
        )


def _with_settings(
    recipe: Recipe,
    *,
    base: BaseSize,
    dialect: Dialect | None,
    size: int,
    seed: int,
    scored: int,
    transform_contexts: int | None,
) -> Recipe:
    """The recipe of one run."""
    own = recipe.settings
    # Its layers are blocks of the base that it was written for.
    depth = load_recipe(recipe.path).num_layers()
    layers = tuple(
        layer if isinstance(layer, float) else layer / depth for layer in own.contract.read_layers
    )
    contract = {"read_layers": layers, "extra": {}}
    if dialect is not None:
        contract |= _CONTRACTS[dialect]
    transform: dict[str, Any] = {"layers": None}
    if transform_contexts is not None:
        transform["num_contexts"] = transform_contexts
    data = own.data
    last = data.parts if data.stages is None else data.stages[-1].parts
    assert last is not None, "a recipe has parts or stages"
    shares = sum(part.share or 0 for part in last) or 1
    validation = [
        part.model_copy(update={"count": scored, "share": None}) for part in data.validation
    ]
    for part in last:
        source = part.source.model_copy(update={"name": f"{_SCORED_PREFIX}{part.source.name}"})
        count = max(1, round(scored * (part.share or 0) / shares))
        validation.append(part.model_copy(update={"source": source, "count": count, "share": None}))
    training = own.training
    steps = size // training.batch_size
    warmup = training.warmup_steps
    if warmup >= 1 and training.max_steps:
        warmup = warmup / training.max_steps
    settings = own.model_copy(
        update={
            "model": own.model.model_copy(update={"name": f"aotoolkit/nano-{base}"}),
            "contract": own.contract.model_copy(update=contract),
            "transform": own.transform.model_copy(update=transform),
            "data": data.model_copy(
                update={
                    "num_examples": size,
                    "held_out": 0,
                    "validation": tuple(validation),
                }
            ),
            "training": training.model_copy(
                update={
                    "max_steps": steps,
                    "num_epochs": 1.0,
                    "warmup_steps": warmup,
                    "seed": seed,
                    "report_to": (),
                    "early_stopping_patience": None,
                }
            ),
        }
    )
    return Recipe(settings, recipe.file)


def _train_and_score(
    recipe: Recipe, folder: Path, *, base: BaseSize, size: int, seed: int
) -> ScalingRun:
    prepared = recipe.prepare(output_dir=folder, progress=False)
    parameters = sum(parameter.numel() for parameter in prepared.model.hf_model.parameters())
    result = train_oracle(
        prepared.model,
        prepared.mixture,
        prepared.config,
        contract=prepared.contract,
        transform=prepared.transform,
        validation=(),  # scored once, below
    )
    examples = list(_to_score(prepared.mixture))
    if not any(scored == "word" for scored, _ in examples):
        raise RecipeError(
            f"{recipe.path}: data.validation has no example of a source whose name ends with "
            f"{_WORD_KIND!r}, so no word is asked for."
        )
    scores = _scores(result.oracle, examples)
    # The oracle is kept, what it was trained with is not.
    for path in folder.iterdir():
        if path.name != "oracle" and path.is_dir():
            shutil.rmtree(path)
    return ScalingRun(
        base=str(base), parameters=parameters, examples=size, seed=seed, scores=scores
    )


def _to_score(mixture: BuiltMixture) -> Iterator[tuple[Scored, Example]]:
    """In which figure each held-out example counts, and the example."""
    held_out = iter(mixture.validation)
    for entry in mixture.manifest:
        for _ in range(entry["held_out"]):
            example = next(held_out)
            if entry["name"].startswith(_SCORED_PREFIX):
                yield "held_out", example
            elif example.source.endswith(_WORD_KIND):
                yield "word", example


def _scores(oracle: Oracle, examples: Sequence[tuple[Scored, Example]]) -> tuple[ScalingScore, ...]:
    model, contract = oracle.model, oracle.contract
    head = model.hf_model.get_output_embeddings()
    assert head is not None, "a causal LM has a head"
    assert model.peft_model is not None, "the oracle is an adapter"
    with model.using(oracle.adapter):
        scores = score_examples(
            model.peft_model,
            ActivationCollator(model, contract, oracle.transform),
            [example for _, example in examples],
            block=model.blocks[contract.inject_layer],
            head=head,
            batch_size=32,
            tokens_per_pass=4096,
        )
    ordered = [sorted(scores[inject], key=lambda score: score.index) for inject in (True, False)]
    return tuple(
        ScalingScore(
            scored=scored,
            unit=example.answer if scored == "word" else _document(example),
            loss=-read.log_prob / read.tokens,
            exact=read.exact,
            loss_without=-bare.log_prob / bare.tokens,
            exact_without=bare.exact,
        )
        for (scored, example), read, bare in zip(examples, *ordered, strict=True)
    )


def _document(example: Example) -> str:
    return hashlib.sha256(repr(example.context_ids).encode()).hexdigest()[:16]
