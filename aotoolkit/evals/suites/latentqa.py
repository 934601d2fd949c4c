"""LatentQA's reading tasks (arXiv:2412.08686) on any model, from its files.

A hidden system prompt in an easy form (candidates of different categories: what follows the system
turn may tell them apart) and a hard one (candidates of one category, which it hardly tells apart),
and relations from the activations of their subject. The arms are those that the paper compares.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import ARM_CONTROLS, ArmControl
from aotoolkit.evals.baselines import CrossFittedProbe
from aotoolkit.evals.leaks import LeakCheck
from aotoolkit.evals.suite import Suite, SuiteEntry
from aotoolkit.evals.suites.aobench import LEAK_CHECKS, FilePath, hidden_probe
from aotoolkit.evals.suites.arms import standard_arms, with_probe
from aotoolkit.evals.tasks.hidden_prompt import Distance, HiddenPrompt, HiddenSystemPrompt, deal
from aotoolkit.evals.tasks.prompt_files import read_hidden_prompts, read_relation
from aotoolkit.evals.tasks.relations import Relation, RelationExtraction
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import AnswerConfidenceKind
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer

# Those of the paper, and the untrained oracle: the same prompt and injection without training.
LATENTQA_BASELINES = ("untrained", "selfie", "patchscopes", "prompting", "text_reader")
FORMS: Mapping[str, Distance] = {"easy": "far", "hard": "near"}

# A forced choice among more than these takes long; of more, answers are free only.
_MOST_OBJECTS = 24


def latentqa_suite(
    model: TracedModel,
    *,
    oracles: Mapping[str, Oracle],
    layers: Layer | Sequence[Layer],
    latentqa: FilePath | None = None,
    relations: Mapping[str, str] | None = None,
    max_items: int = 100,
    candidates: int = 4,
    controls: Sequence[ArmControl] = ARM_CONTROLS,
    baselines: Sequence[str] = LATENTQA_BASELINES,
    probe: bool = True,
    max_new_tokens: int = 32,
    confidence: AnswerConfidenceKind | None = None,
    leak_checks: tuple[LeakCheck, ...] = LEAK_CHECKS,
    seed: int = 0,
) -> Suite:
    """Hidden system prompt, easy and hard, and relation extraction.

    Args:
        model: The target; its base is read.
        oracles: Name in tables -> oracle; controls are those of the first.
        layers: Blocks that are read, or fractions of the depth.
        latentqa: Folder of LatentQA's files, of which `system.json` and `qa.json` are read.
        relations: Tab-separated file of the Patchscopes form -> what is asked of its subjects.
        max_items: At most so many hidden prompts of a form, and so many texts of a relation, drawn
            by `seed`.
        candidates: How many hidden prompts there are to choose from.
        controls: Which controls.
        baselines: Which baselines, of `suites.arms.BASELINES`.
        probe: Whether linear probes are fitted: of hidden prompts on the base with other user's
            turns, of relations on other subjects.
        max_new_tokens: Longest answer.
        confidence: How sure the oracles are of what they say; see `OracleArm`.
        leak_checks: What is checked before anything is answered; see `aotoolkit.evals.leaks`.
        seed: Of what is drawn.

    Raises:
        EvalError: No file was named, or its prompts fill no group.
        DataError: A file is missing or not in its form.
    """
    arms = standard_arms(
        model,
        oracles,
        controls=controls,
        baselines=baselines,
        max_new_tokens=max_new_tokens,
        confidence=confidence,
        seed=seed,
    )
    entries: list[SuiteEntry] = []
    if latentqa is not None:
        prompts = read_hidden_prompts(latentqa)
        for form, distance in FORMS.items():
            groups = _groups(prompts, distance, candidates, max_items, seed)
            task = HiddenSystemPrompt(
                name=f"hidden_prompt/{form}", groups=groups, candidates=candidates, layers=layers
            )
            fitted = hidden_probe(model, task)
            entries.append(SuiteEntry(task=task, arms=with_probe(arms, fitted) if probe else arms))
    for file, question in (relations or {}).items():
        relation = _some(read_relation(file), max_items, seed)
        task = RelationExtraction(
            relation=relation,
            question=question,
            forced_choice=1 < len({m.object for m in relation.mentions}) <= _MOST_OBJECTS,
            name=f"relation/{relation.name}",
            layers=layers,
        )
        own = (*arms, CrossFittedProbe()) if probe else arms
        entries.append(SuiteEntry(task=task, arms=own))
    if not entries:
        raise EvalError(
            "There is nothing to evaluate: name a folder as latentqa=, or files as relations=."
        )
    return Suite(name="latentqa", entries=tuple(entries), leak_checks=leak_checks)


def _groups(
    prompts: Sequence[HiddenPrompt], distance: Distance, size: int, max_items: int, seed: int
) -> list[list[HiddenPrompt]]:
    groups = deal(prompts, size=size, seed=seed, distance=distance)
    if not groups:
        of = "one category" if distance == "near" else "different categories"
        raise EvalError(
            f"No {size} of the {len(prompts)} hidden prompts are of {of} and have different "
            "answers, so that they could be candidates together. Give more prompts, or fewer "
            "candidates."
        )
    return groups[: max(1, max_items // size)]


def _some(relation: Relation, count: int, seed: int) -> Relation:
    """A relation with at most so many texts."""
    if len(relation.mentions) <= count:
        return relation
    drawn = random.Random(seed).sample(range(len(relation.mentions)), count)
    mentions = tuple(relation.mentions[number] for number in sorted(drawn))
    return dataclasses.replace(relation, mentions=mentions)
