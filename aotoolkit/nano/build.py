"""Makes the embedded models again from their seeds: `aotoolkit nano build`.

Each part is finished or not there: it is written under a temporary name and renamed when it is
whole. Unfinished trainings go on from their last checkpoint under `checkpoints`.
"""

import json
import multiprocessing
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from aotoolkit.atomic import replacing
from aotoolkit.errors import LateBaseWarning, NanoWeightsError
from aotoolkit.nano import demo
from aotoolkit.nano.base import examine_base, train_base
from aotoolkit.nano.load import load
from aotoolkit.nano.organisms import (
    KINDS,
    Kind,
    Organism,
    OrganismPlan,
    organism_plans,
    train_organism,
)
from aotoolkit.nano.tokenizer import build_tokenizer
from aotoolkit.nano.told_words import told_words
from aotoolkit.nano.variants import (
    VARIANTS,
    VARIANTS_FOLDER,
    Variant,
    variant,
    variant_recipe,
)
from aotoolkit.nano.workers import end_with_parent, keep_freed_memory
from aotoolkit.nano.world import World, load_world
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.tracing import TracedModel
from aotoolkit.training import Recipe, TrainingResult, load_recipe

Part = Literal["base", "organisms", "oracle", "decoder", "variants"]
PARTS: tuple[Part, ...] = get_args(Part)
# What is built where no part is named: variants are for asking what data is worth, and take longer
# than all else together.
USUAL_PARTS: tuple[Part, ...] = ("base", "organisms", "oracle", "decoder")

# What `aotoolkit demo --changed` measures on the models of this folder.
FIGURES = "demo.json"

# What a base knew and held, beside its weights.
EXAMINED = "examined.json"
_TOLD = "told_words_"

# Where no seed is given, bases are looked at after a quarter of their reading: the one that came
# out late was late by then (docs/nano.md).
STEPS_BEFORE_TOLD = 2000
# The base of seed 1 was early (made twice, to the bit), of seed 0, which ships, one of three.
SEEDS_TRIED = (1, 0, 2, 3)
FIRST_TOLD = "told_words.json"

# How the oracle is trained, and the decoder of LatentQA's dialect on the same data.
RECIPE = Path(__file__).with_name("nano.yaml")
DECODER_RECIPE = Path(__file__).with_name("nano_latentqa.yaml")


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder under a temporary name and renames it when it is complete."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    temporary.rename(folder)


def halve_adapter(folder: Path) -> None:
    """Stores the weights of a PEFT folder in float16, half the size."""
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_base(folder: Path) -> PreTrainedModel:
    """The finished base in float32, as every later part is trained on it."""
    if not folder.is_dir():
        raise NanoWeightsError(f"There is no base in {folder}; build it first with --part base.")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def build_base(world: World, out: Path, *, seed: int | None = None) -> None:
    """Trains tokenizer and base, and stores how it did on what was held out.

    Without a seed, it is that of the first base which carries what a prompt told it after a quarter
    of its reading. Warns of a finished base that does not: an oracle will read little of what its
    organisms hide.

    Args:
        world: what it is to know.
        out: the base is written to `out / "base"`; one that is there is left alone.
        seed: of documents and weights.

    Raises:
        NanoWeightsError: A base of another seed is there.
    """
    if (out / "base").is_dir():
        _require_seed(out / "base", seed)
    else:
        tokenizer = build_tokenizer(world)
        chosen = _seed_that_carries(world, tokenizer, out) if seed is None else seed
        model = train_base(world, tokenizer, _base_checkpoints(out, chosen), seed=chosen)

        def write(folder: Path) -> None:
            model.half().save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))
            figures = {"seed": chosen, **examine_base(load_base(folder), tokenizer, world)}
            told = told_words(TracedModel(load_base(folder), tokenizer), world)
            figures |= {f"{_TOLD}{layer}": share for layer, share in told.items()}
            (folder / EXAMINED).write_text(json.dumps(figures, indent=2) + "\n")

        _whole(out / "base", write)
    _warn_of_a_late_base(out / "base")


def _base_checkpoints(out: Path, seed: int) -> Path:
    return out / "checkpoints" / f"base_{seed}"


def _seed_that_carries(world: World, tokenizer: PreTrainedTokenizerFast, out: Path) -> int:
    """The first seed whose base does not hold told words late; the last where all others do."""
    *others, last = SEEDS_TRIED
    for seed in others:
        checkpoints = _base_checkpoints(out, seed)
        known = checkpoints / FIRST_TOLD
        if known.exists():
            told = json.loads(known.read_text())
        else:
            model = train_base(world, tokenizer, checkpoints, seed=seed, until=STEPS_BEFORE_TOLD)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                base = TracedModel(load_base(Path(folder)), tokenizer)
                shares = told_words(base, world)
            told = {str(layer): share for layer, share in shares.items()}
            with replacing(known) as temporary:
                temporary.write_text(json.dumps(told) + "\n")
        if not is_late(told):
            return seed
        warnings.warn(
            f"The base of seed {seed} holds told words late after {STEPS_BEFORE_TOLD} steps (a "
            f"linear map names {_by_layer(told)}); it is left there for the next seed.",
            LateBaseWarning,
            stacklevel=3,
        )
    return last


def _by_layer(told: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.2f} at layer {layer}" for layer, share in told.items())


def is_late(told: Mapping[Any, float]) -> bool:
    """Whether the first layer read holds less than half the told words that the last one does.

    Args:
        told: layer -> share of told words, in order.
    """
    shares = list(told.values())
    return shares[0] < shares[-1] / 2


def _examined(base: Path) -> dict[str, Any]:
    """What is on record of a base: nothing, where it was put there by hand."""
    path = base / EXAMINED
    return json.loads(path.read_text()) if path.exists() else {}


def _require_seed(base: Path, seed: int | None) -> None:
    there = _examined(base).get("seed", "unknown")
    if seed not in (None, there):
        raise NanoWeightsError(
            f"The base in {base} is of seed {there}, and {seed} is wanted. Build in another folder."
        )


def _warn_of_a_late_base(folder: Path) -> None:
    figures = _examined(folder)
    told = {n.removeprefix(_TOLD): share for n, share in figures.items() if n.startswith(_TOLD)}
    if told and is_late(told):
        warnings.warn(
            f"The base in {folder} fetches a word that its prompt told it only where a reply is "
            f"about to need it (a linear map names {_by_layer(told)}; the base that ships: 0.68, "
            "0.61, 0.60). Of a base like this an oracle read hardly anything its organisms hid "
            "(docs/nano.md). For another one build in another folder, with another --base-seed.",
            LateBaseWarning,
            stacklevel=2,
        )


def build_organisms(
    world: World,
    out: Path,
    *,
    plans: Sequence[OrganismPlan] | None = None,
    name: str = "organisms",
) -> None:
    """Fine-tunes one organism for each plan; by default all of every kind."""
    tokenizer = _tokenizer(out)
    base = load_base(out / "base")
    base_half = {key: value.clone() for key, value in base.state_dict().items()}
    (out / name).mkdir(exist_ok=True)
    if plans is None:
        plans = [plan for kind in KINDS for plan in organism_plans(world, kind)]
    kinds = {plan.kind for plan in plans}
    label = f"{name}, {kinds.pop()}" if len(kinds) == 1 else name
    for plan in tqdm(plans, desc=label, unit="organism"):
        if (out / name / plan.name).is_dir():
            continue
        model = train_organism(base, tokenizer, plan, folder=out / "checkpoints" / plan.name)
        examined = plan.examine(model, tokenizer)

        def write(folder: Path, model=model, plan=plan, examined=examined) -> None:
            # PEFT would write the path of the machine that trained it.
            model.peft_config["default"].base_model_name_or_path = "aotoolkit/nano"
            model.save_pretrained(str(folder))
            (folder / "README.md").unlink()  # PEFT's empty form of a model card
            halve_adapter(folder)
            Organism(
                name=plan.name,
                kind=plan.kind,
                secret=plan.secret,
                trained_on=plan.trained_on,
                seed=plan.seed,
                examined=examined,
            ).save(folder)

        _whole(out / name / plan.name, write)
        base = model.unload()
        assert all(torch.equal(base_half[k], v) for k, v in base.state_dict().items())


def _build_kind(world: World, out: Path, *, kind: Kind) -> None:
    build_organisms(world, out, plans=organism_plans(world, kind))


def build_oracle(world: World, out: Path) -> None:  # noqa: ARG001  # as the other builders
    """Trains the oracle on the base's activations, as `nano.yaml` says."""
    _train(RECIPE, out, "oracle")


def build_decoder(world: World, out: Path) -> None:  # noqa: ARG001  # as the other builders
    """Trains the LatentQA decoder on the oracle's data, as `nano_latentqa.yaml` says."""
    _train(DECODER_RECIPE, out, "decoder")


def _train(recipe_file: Path, out: Path, name: str) -> None:
    if (out / name).is_dir():
        return
    _require_base(out)
    recipe = load_recipe(recipe_file).with_base(out / "base")
    result = recipe.run(output_dir=out / "checkpoints" / name)
    _store_oracle(out / name, result)


def _store_oracle(target: Path, result: TrainingResult, **extra: Any) -> None:
    """Writes an oracle in half precision, with its figures and `extra` in the contract."""
    oracle, figures = result.oracle, result.metrics
    assert figures is not None, "the recipe holds examples out"
    accuracy = {
        name: {"with": row.exact_match, "without": row.exact_match_without, "n": row.n}
        for name, row in figures.sources.items()
    }
    contract = replace(
        oracle.contract, extra={**oracle.contract.extra, "reading_accuracy": accuracy, **extra}
    )

    def write(folder: Path) -> None:
        oracle.save_pretrained(folder)
        contract.write(folder)
        halve_adapter(folder)

    _whole(target, write)


def _variant_builders(
    variants: Sequence[Variant], *, seeds: int | None, steps: int | None
) -> "list[_Builder]":
    """One builder for each oracle, seed by seed: a build that is stopped has one of each."""
    return [
        partial(_build_variant, chosen=one, seed=seed, steps=steps, recipe_file=RECIPE)
        for seed in range(max(seeds or one.seeds for one in variants))
        for one in variants
        if seed < (seeds or one.seeds)
    ]


def _build_variant(
    world: World,  # noqa: ARG001  # as the other builders
    out: Path,
    *,
    chosen: Variant,
    seed: int,
    steps: int | None,
    recipe_file: Path,
) -> None:
    """Trains an oracle of another mixture or transform in `variants/NAME-seedN`.

    The one that is trained as `oracle` is, is taken from there.

    Raises:
        NanoWeightsError: There is no base, or the oracle there was trained by another recipe.
    """
    _require_base(out)
    recipe = load_recipe(recipe_file).with_base(out / "base")
    name = f"{chosen.name}-seed{seed}"
    derived = variant_recipe(recipe, chosen, seed=seed, steps=steps)
    length = derived.settings.training.max_steps
    target = out / VARIANTS_FOLDER / name
    if target.is_dir():
        _refuse_other_recipe(target, derived)
        return
    target.parent.mkdir(exist_ok=True)
    label = {"name": chosen.name, "seed": seed, "steps": length}
    if derived.settings == recipe.settings and _is_of(out / "oracle", derived):
        # The part `oracle` is this very training.
        _copy_oracle(out / "oracle", target, variant=label)
        return
    result = derived.run(output_dir=out / "checkpoints" / VARIANTS_FOLDER / name)
    _store_oracle(target, result, variant=label)


def _is_of(folder: Path, recipe: Recipe) -> bool:
    """Whether an oracle is there that a recipe's training makes, as far as its contract shows."""
    if not folder.is_dir():
        return False
    made = OracleContract.read(folder)
    _, planned, mixture = recipe.check()
    assert mixture is not None, "the recipe is a curriculum"
    training = recipe.settings.training
    planned = replace(
        planned,
        lora_rank=training.lora_rank,
        lora_alpha=training.lora_alpha,
        rslora=training.rslora,
        # What only a training knows, and what comes after it.
        aotoolkit_version=made.aotoolkit_version,
        calibrations=made.calibrations,
        base_digest=made.base_digest,
        transform_digest=made.transform_digest,
        training_data=made.training_data,
        extra=made.extra,
    )
    parts = {
        part.source.name: (count, json.loads(json.dumps(part.source.describe())))
        for stage, counts in zip(mixture.stages, mixture.counts, strict=True)
        for part, count in zip(stage.parts, counts, strict=True)
    }
    trained = {
        part["name"]: (part["examples"] + part["held_out"], part["source"])
        for part in made.training_data
        if part["examples"]
    }
    return (
        (made, trained) == (planned, parts)
        and made.base_digest is not None
        and recipe.load_model().has_base_digest(made.base_digest)
    )


def _copy_oracle(source: Path, target: Path, **extra: Any) -> None:
    """An oracle once more, with `extra` in its contract."""
    contract = OracleContract.read(source)

    def write(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        replace(contract, extra={**contract.extra, **extra}).write(folder)

    _whole(target, write)


def _refuse_other_recipe(target: Path, recipe: Recipe) -> None:
    there = OracleContract.read(target)
    steps, transform = recipe.settings.training.max_steps, recipe.settings.transform.kind
    trained = there.extra["variant"]["steps"]
    if (trained, there.transform) != (steps, transform):
        raise NanoWeightsError(
            f"{target} was trained for {trained} steps and has the transform {there.transform!r}; "
            f"{steps} and {transform!r} are wanted. Remove it (and its checkpoints), or build in "
            "another folder."
        )
    if not _is_of(target, recipe):
        raise NanoWeightsError(
            f"{target} was trained on another base, on other data or by other settings than this "
            "version's recipe has. Remove it (and its checkpoints), or build in another folder."
        )


def _require_base(out: Path) -> None:
    if not (out / "base").is_dir():
        raise NanoWeightsError(
            f"There is no base in {out / 'base'}; build it first with --part base."
        )


def _tokenizer(out: Path) -> PreTrainedTokenizerFast:
    _require_base(out)
    return AutoTokenizer.from_pretrained(out / "base")


def build(
    out: str | Path,
    *,
    part: Part | None = None,
    variants: Sequence[str] = (),
    seeds: int | None = None,
    steps: int | None = None,
    base_seed: int | None = None,
    threads: int | None = None,
) -> None:
    """Builds the embedded models, or one part of them, in `out`.

    Where all but the variants is built, the demo is measured on it and written to `demo.json`.
    Of the variants, `full` of seed 0 is the oracle of the same recipe, where that is there.

    Args:
        out: base, organisms, oracle and decoder are written here; parts that are whole are left
            alone.
        part: one part; all but `variants` by default.
        variants: names of those to build, of the part `variants`; all by default.
        seeds: oracles of each of them; by default one, or three where it says so.
        steps: of the full mixture of variants, in place of the recipe's.
        base_seed: of the base's documents and weights, where it is built; by default the first
            whose base carries what a prompt told it.
        threads: of torch; its own default otherwise. With two or more, variants are trained beside
            each other, and where no part is named, organisms beside the oracle and the decoder: in
            as many processes as there are threads, up to one for each of them and each kind of
            organism. A script that calls this needs `if __name__ == "__main__":`. This process
            keeps the memory that it frees (`nano.workers`).

    Raises:
        NanoWeightsError: A part lacks the base, a base of another seed is there, there is no such
            variant, or an oracle of one is there that was trained by another recipe.
    """
    chosen = [variant(name) for name in variants] or VARIANTS
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    available = threads or torch.get_num_threads()
    if part == "variants":
        _require_base(folder)
        builders = _variant_builders(chosen, seeds=seeds, steps=steps)
        _build_all(builders, folder=folder, threads=available, label="variants")
        return
    base = partial(build_base, seed=base_seed)
    if part is not None or available < 2:
        for name in USUAL_PARTS if part is None else (part,):
            builder = base if name == "base" else _BUILDERS[name]
            _build_one(builder, folder=folder, threads=threads)
    else:
        _build_one(base, folder=folder, threads=available)
        _build_all(_AFTER_BASE, folder=folder, threads=available, label="after the base")
    if part is None:
        measure_demo(folder, threads=threads)


def measure_demo(folder: Path, *, threads: int | None) -> None:
    """Writes what the demo measures on the models of a folder beside them."""
    _use_threads(threads)
    figures = demo.run(load(folder), changed=True).to_dict()
    with replacing(folder / FIGURES) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")


def _build_all(builders: "Sequence[_Builder]", *, folder: Path, threads: int, label: str) -> None:
    """Has each builder done by the process that is free next; by this one where there is one."""
    workers = min(threads, len(builders))
    run = partial(_build_one, folder=folder, threads=threads // workers)
    if workers == 1:
        for builder in tqdm(builders, desc=label, unit="part"):
            run(builder)
        return
    others = set(multiprocessing.active_children())
    # Not forked: torch's threads do not survive that. Not multiprocessing's own pool, which waits
    # for ever for a process that the system ended.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        done = as_completed([pool.submit(run, builder) for builder in builders])
        # The executor watches the processes that were there when it last woke up, and starts the
        # last one after that. This wakes it once more.
        pool.submit(int)
        try:
            for future in tqdm(done, desc=label, total=len(builders), unit="part"):
                future.result()
        except BaseException as error:
            # The first failure ends the other processes too: what they had begun goes on in the
            # next call.
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise NanoWeightsError(
                    "A process of the build was ended from outside, perhaps for want of memory. "
                    "The same command goes on where it was; with --threads 1 it needs less memory."
                ) from error
            raise


def _start_worker() -> None:
    warnings.simplefilter("ignore", FutureWarning)  # as in the command's own process
    end_with_parent()
    keep_freed_memory()


_Builder = Callable[[World, Path], None]
_BUILDERS: dict[Part, _Builder] = {
    "organisms": build_organisms,
    "oracle": build_oracle,
    "decoder": build_decoder,
}
# What needs the base alone, the longest first. With two threads or more each is done by the process
# that is free next, since so small models hardly gain from a second thread.
_AFTER_BASE: tuple[_Builder, ...] = (
    build_decoder,
    build_oracle,
    *(partial(_build_kind, kind=kind) for kind in KINDS),
)


def _build_one(builder: _Builder, *, folder: Path, threads: int | None) -> None:
    _use_threads(threads)
    builder(load_world(), folder)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
