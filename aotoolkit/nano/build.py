"""Makes the embedded models again from their seeds: `aotoolkit nano build`.

Each part is finished or not there: it is written under a temporary name and renamed when it is
whole. Unfinished trainings go on from their last checkpoint under `checkpoints`.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import aotoolkit
from aotoolkit.errors import NanoWeightsError
from aotoolkit.nano.base import examine_base, train_base
from aotoolkit.nano.mixture import READ_LAYERS, OracleMixture
from aotoolkit.nano.organisms import Organism, examine_organism, train_organism
from aotoolkit.nano.tokenizer import PLACEHOLDER, build_tokenizer
from aotoolkit.nano.world import World, load_world
from aotoolkit.oracle import OracleContract
from aotoolkit.oracle.contract import Transform
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.oracle.transform import VectorTransform, fit_transform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import TrainingConfig, train_oracle

Part = Literal["base", "organisms", "oracle"]
PARTS: tuple[Part, ...] = get_args(Part)

INJECT_LAYER = 1
TRANSFORM: Transform = "centred_by_token"
STATISTICS_CONTEXTS = 2000
ORACLE_STEPS = 10_000
# Centring takes away what a token is, and with it the easiest thing to learn reading from.
UNTRANSFORMED_STEPS = 800
# Chosen on the organisms of the validation secrets, which are not among those reported.
RECOMMENDED_LAYER = 2


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


def load_base(folder: Path) -> torch.nn.Module:
    """The finished base in float32, as every later part is trained on it."""
    if not folder.is_dir():
        raise NanoWeightsError(f"There is no base in {folder}; build it first with --part base.")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def build_base(world: World, out: Path) -> None:
    """Trains tokenizer and base, and stores how it did on held-out phrasings and riddles."""
    if (out / "base").is_dir():
        return
    tokenizer = build_tokenizer(world)
    model = train_base(world, tokenizer, out / "checkpoints" / "base")

    def write(folder: Path) -> None:
        model.half().save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        figures = examine_base(load_base(folder), tokenizer, world)
        (folder / "examined.json").write_text(json.dumps(figures, indent=2) + "\n")

    _whole(out / "base", write)


def build_organisms(
    world: World, out: Path, *, secrets: Sequence[str] | None = None, name: str = "organisms"
) -> None:
    """Fine-tunes one organism for each secret; by default those of the world's test secrets."""
    tokenizer = _tokenizer(out)
    base = load_base(out / "base")
    base_half = {key: value.clone() for key, value in base.state_dict().items()}
    (out / name).mkdir(exist_ok=True)
    for secret in tqdm(secrets or world.test_secrets, desc=name, unit="organism"):
        if (out / name / secret).is_dir():
            continue
        model = train_organism(
            base, tokenizer, world, secret, folder=out / "checkpoints" / "organism", seed=0
        )
        examined = examine_organism(model, tokenizer, world, secret)

        def write(folder: Path, model=model, secret=secret, examined=examined) -> None:
            # PEFT would write the path of the machine that trained it.
            model.peft_config["default"].base_model_name_or_path = "aotoolkit/nano"
            model.save_pretrained(str(folder))
            halve_adapter(folder)
            Organism(
                name=secret,
                secret=secret,
                trained_on="dialogues of hints at the word and refusals to say it, 30 % ordinary "
                "questions; no system prompt, and never the word itself",
                seed=0,
                examined=examined,
            ).save(folder)

        _whole(out / name / secret, write)
        base = model.unload()
        assert all(torch.equal(base_half[k], v) for k, v in base.state_dict().items())


def fit_nano_transform(
    model: TracedModel, world: World, tokenizer: PreTrainedTokenizerFast, kind: Transform
) -> VectorTransform:
    """The transform's statistics over the base's own text, by the mixture's documents.

    They are for every layer, so that one may also ask about layers the oracle was not trained on.
    """
    layers = range(model.num_layers)

    def batches() -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
        for context in OracleMixture(world, tokenizer).contexts(STATISTICS_CONTEXTS):
            ids = torch.tensor([context])
            vectors = model.residuals(ids, torch.ones_like(ids), layers=layers, adapter=None)
            yield vectors[:, 0], context

    return fit_transform(kind, batches(), layers=layers, vocabulary_size=len(tokenizer))


def nano_contract(model: TracedModel, transform: VectorTransform) -> OracleContract:
    """The contract of the nano oracle."""
    contract = OracleContract(
        base_model="aotoolkit/nano",
        base_digest=model.base_digest,
        dialect="activation_oracle",
        prefix_template="Layer: {layer}\n{placeholders} \n",
        placeholder=PLACEHOLDER,
        read_layers=READ_LAYERS,
        read_fractions=tuple(layer / model.num_layers for layer in READ_LAYERS),
        layers_per_prompt="one",
        inject_layer=INJECT_LAYER,
        formula="add_norm_matched",
        coefficient=1.0,
        transform=transform.kind,
        transform_digest=transform.digest if transform.kind != "none" else None,
        position_ids="from_mask",
        collection_adapter=None,
        licence="MIT",
        aotoolkit_version=aotoolkit.__version__,
        extra={"recommended_layer": RECOMMENDED_LAYER},
    )
    return describe_tokenizer(contract, model.tokenizer)


def build_oracle(
    world: World,
    out: Path,
    *,
    kind: Transform = TRANSFORM,
    steps: int = ORACLE_STEPS,
    untransformed_steps: int = UNTRANSFORMED_STEPS,
    name: str = "oracle",
) -> None:
    """Trains the oracle on the base's activations."""
    if (out / name).is_dir():
        return
    tokenizer = _tokenizer(out)
    model = TracedModel(load_base(out / "base"), tokenizer, name="aotoolkit/nano")  # pyright: ignore[reportArgumentType]
    transform = fit_nano_transform(model, world, tokenizer, kind)
    contract = nano_contract(model, transform)
    mixture = OracleMixture(world, tokenizer, total_steps=steps)
    config = TrainingConfig(
        output_dir=out / "checkpoints" / name,
        max_steps=steps,
        batch_size=32,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        warmup_steps=100,
        adam_beta2=0.98,
        lora_rank=64,
        lora_alpha=64,
        rslora=True,
        untransformed_steps=untransformed_steps,
        bf16=torch.cpu._is_avx512_bf16_supported(),
    )
    result = train_oracle(
        model,
        mixture.training(steps * config.batch_size),
        config,
        contract=replace(contract, training_data=mixture.manifest(steps * config.batch_size)),
        transform=transform,
        validation=mixture.validation(),
    )

    def write(folder: Path) -> None:
        result.oracle.save_pretrained(folder)
        halve_adapter(folder)

    _whole(out / name, write)


def _tokenizer(out: Path) -> PreTrainedTokenizerFast:
    if not (out / "base").is_dir():
        raise NanoWeightsError(
            f"There is no base in {out / 'base'}; build it first with --part base."
        )
    return AutoTokenizer.from_pretrained(out / "base")


def build(out: str | Path, *, part: Part | None = None, threads: int | None = None) -> None:
    """Builds the embedded models, or one part of them, in `out`.

    Args:
        out: base, organisms and oracle are written here; parts that are whole are left alone.
        part: one part; all in order by default.
        threads: of torch; its own default otherwise.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    world = load_world()
    builders: dict[Part, Callable[[World, Path], None]] = {
        "base": build_base,
        "organisms": build_organisms,
        "oracle": build_oracle,
    }
    for name in PARTS if part is None else (part,):
        builders[name](world, folder)
