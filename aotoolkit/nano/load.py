"""Loading the embedded world: its base, its organisms as adapters, and its oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from aotoolkit.errors import NanoWeightsError
from aotoolkit.nano.organisms import KINDS, Kind, Organism
from aotoolkit.nano.world import World, load_world
from aotoolkit.oracle import Oracle
from aotoolkit.tracing import TracedModel

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Nano:
    """The embedded world, loaded.

    Attributes:
        model: the base, with every organism as an adapter of its name.
        oracle: the oracle, on the same base weights.
        organisms: name -> what it hides and what it was trained on, of the kinds loaded.
        world: what is true.
        decoder: the LatentQA decoder, trained on the same data as the oracle; None where it was not
            loaded.
    """

    model: TracedModel
    oracle: Oracle
    organisms: Mapping[str, Organism]
    world: World
    decoder: Oracle | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The nano tokenizer."""
        tokenizer = self.model.tokenizer
        assert isinstance(tokenizer, PreTrainedTokenizerFast), "built as one"
        return tokenizer


def load_model() -> TracedModel:
    """Loads the base that ships with the package alone, without organisms and oracle.

    This is what an oracle is trained on: `train_oracle` takes no model that has adapters already.
    """
    base = WEIGHTS / "base"
    hf_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return TracedModel(hf_model, AutoTokenizer.from_pretrained(base), name="aotoolkit/nano")


def load(
    folder: str | Path | None = None,
    *,
    kinds: Sequence[Kind] = ("taboo",),
    decoder: bool = False,
) -> Nano:
    """Loads the models that ship with the package, or those that `aotoolkit nano build` made.

    Args:
        folder: a folder with `base`, `organisms` and `oracle`; by default the package's own.
        kinds: of the organisms that are loaded as adapters.
        decoder: whether the LatentQA decoder is loaded too, from the folder `decoder`.

    Raises:
        NanoWeightsError: A part is missing, or there is no such kind.
    """
    root = WEIGHTS if folder is None else Path(folder)
    for part in ("base", "organisms", "oracle", *(("decoder",) if decoder else ())):
        if not (root / part).is_dir():
            raise NanoWeightsError(
                f"{root} has no folder {part!r}. The embedded models are made of base, organisms, "
                "oracle and decoder: build them with 'aotoolkit nano build --out DIR', or install "
                "the package with its data."
            )
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise NanoWeightsError(f"There are no organisms of the kinds {unknown}; give {KINDS}.")
    found = [
        Organism.load(path)
        for path in sorted((root / "organisms").iterdir())
        if path.is_dir() and not path.name.startswith(".")  # what a killed build left unfinished
    ]
    organisms = {organism.name: organism for organism in found if organism.kind in kinds}
    # Stored in half precision, run in single: CPUs have no fast half-precision arithmetic.
    model = TracedModel.from_pretrained(
        "aotoolkit/nano" if folder is None else root / "base",
        dtype=torch.float32,
        device="cpu",
        adapters={name: root / "organisms" / name for name in organisms},
    )
    return Nano(
        model,
        Oracle.from_pretrained(root / "oracle", model=model),
        organisms,
        load_world(),
        Oracle.from_pretrained(root / "decoder", model=model) if decoder else None,
    )
