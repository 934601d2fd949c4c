"""The suite `nano variants`: what kinds of training data and centred vectors are worth.

All oracles that `aotoolkit nano build --part variants` made answer the items of the suite `nano`,
and those of two tasks more that read the header of a reply alone, whose tokens are alike in every
prompt. The table decides the claims by paired differences, with training seeds drawn as units are.
"""

import dataclasses
from pathlib import Path

from aotoolkit.errors import NanoWeightsError
from aotoolkit.evals.comparisons import Comparison
from aotoolkit.evals.suite import Suite
from aotoolkit.nano.load import Nano
from aotoolkit.nano.suite import nano_suite
from aotoolkit.nano.variants import VARIANTS, VARIANTS_FOLDER
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import AnswerConfidenceKind
from aotoolkit.oracle.contract import OracleContract

# Of it the controls are.
FIRST = "full"
# No variant that is trained: the oracles `full`, asked as they were trained.
WITHOUT_RECALL = "full_pooled"
HEADER_TASKS = ("taboo, header", "state, header")
CLAIMS = (
    Comparison(
        claim="each addition of data is better than the last",
        pairs=(("latentqa_classification", "latentqa"), ("full", "latentqa_classification")),
        leave_out=HEADER_TASKS,
    ),
    Comparison(
        claim="more kinds of data are better at equal size",
        pairs=(("full_equal_size", "latentqa"),),
        leave_out=HEADER_TASKS,
    ),
    Comparison(
        claim="centring lets an oracle read what tokens with a large constant part carry",
        pairs=(("full_centred", "full_uncentred"),),
        tasks=HEADER_TASKS,
    ),
    Comparison(
        claim="centring reads better elsewhere too",
        pairs=(("full_centred", "full_uncentred"),),
        leave_out=HEADER_TASKS,
    ),
    Comparison(
        claim="an oracle that recalls answers when it is asked reads better",
        pairs=(("full", WITHOUT_RECALL),),
        leave_out=HEADER_TASKS,
    ),
    Comparison(
        claim="the mean over what is read lets an oracle read what is spread over it",
        pairs=((WITHOUT_RECALL, "full_unpooled"),),
        leave_out=HEADER_TASKS,
    ),
    # The rate of wrong answers: higher without.
    Comparison(
        claim="who has not learned to abstain says more that is wrong",
        pairs=(("full", "full_abstention"),),
        tasks=("vagueness",),
        metric="wrong",
    ),
)


def load_variants(lab: Nano, folder: str | Path) -> dict[str, dict[int, Oracle]]:
    """The oracles of a build by variant and seed, and `full` once more as it was trained.

    Args:
        lab: the models; the base must be the one that the oracles were trained on.
        folder: where `aotoolkit nano build --part variants` wrote to.

    Raises:
        NanoWeightsError: There are none, or several of one variant were trained for other steps.
        The errors of `Oracle.from_pretrained`.
    """
    root = Path(folder) / VARIANTS_FOLDER
    places: dict[str, dict[int, Path]] = {}
    lengths: dict[str, set[int]] = {}
    for path in sorted(root.glob("[!.]*/")):
        made = OracleContract.read(path).extra["variant"]
        places.setdefault(made["name"], {})[made["seed"]] = path
        lengths.setdefault(made["name"], set()).add(made["steps"])
    if not places:
        raise NanoWeightsError(
            f"There are no oracles in {root}; train some with 'aotoolkit nano build --out "
            f"{folder} --part variants'."
        )
    if mixed := [name for name, steps in lengths.items() if len(steps) > 1]:
        raise NanoWeightsError(
            f"The oracles of {mixed[0]!r} in {root} were trained for {sorted(lengths[mixed[0]])} "
            "steps, so that they are not seeds of one recipe. Remove those of one length."
        )
    order = [FIRST, *(one.name for one in VARIANTS if one.name != FIRST)]
    oracles = {
        name: {
            seed: Oracle.from_pretrained(path, model=lab.model)
            for seed, path in sorted(places[name].items())
        }
        for name in order
        if name in places
    }
    if FIRST in oracles:
        oracles[WITHOUT_RECALL] = {seed: as_trained(one) for seed, one in oracles[FIRST].items()}
    return oracles


def as_trained(oracle: Oracle) -> Oracle:
    """The same oracle, asked as it was trained: without what its vectors recall."""
    transform = oracle.transform.as_trained
    contract = dataclasses.replace(
        oracle.contract, transform=transform.kind, transform_digest=transform.digest
    )
    return Oracle(oracle.model, oracle.adapter, contract, transform=transform)


def variant_suite(
    lab: Nano,
    folder: str | Path,
    *,
    quick: bool = False,
    baselines: bool = True,
    confidence: AnswerConfidenceKind | None = None,
) -> Suite:
    """All variants in a folder, on the tasks of the suite `nano` and two of headers.

    Args:
        lab: the models, with organisms of all kinds: `nano.load(kinds=nano.KINDS)`.
        folder: where `aotoolkit nano build --part variants` wrote to.
        quick: see `nano_suite`.
        baselines: see `nano_suite`.
        confidence: see `nano_suite`.

    Raises:
        NanoWeightsError: see `load_variants`.
    """
    oracles = load_variants(lab, folder)
    suite = nano_suite(
        lab,
        oracles=oracles,
        quick=quick,
        baselines=baselines,
        headers=True,
        confidence=confidence,
    )
    missing = [one.name for one in VARIANTS if one.name not in oracles]
    notes = (
        (f"Not built, so that no claim about them is decided: {', '.join(missing)}.",)
        if missing
        else ()
    )
    few = [
        f"{one.name} ({len(oracles[one.name])} of {one.seeds})"
        for one in VARIANTS
        if one.name in oracles and len(oracles[one.name]) < one.seeds
    ]
    if few:
        notes += (f"Fewer seeds than planned: {', '.join(few)}.",)
    return dataclasses.replace(
        suite, name="nano variants", notes=(*suite.notes, *notes), comparisons=CLAIMS
    )
