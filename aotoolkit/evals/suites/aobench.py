"""Tasks that need no organism and no judge, from local files, on any model.

After AObench (arXiv:2606.02609), without what only a model can grade: classification of published
statements, hidden system prompts and splice pairs from LatentQA's `system.json`, questions about
texts from its `control.json`, and relations from files of the Patchscopes form.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import ARM_CONTROLS, Arm, ArmControl
from aotoolkit.evals.items import EvalItem, ItemSpec
from aotoolkit.evals.leaks import LeakCheck, TrainedOnThisBase
from aotoolkit.evals.suite import Suite, SuiteEntry
from aotoolkit.evals.suites.arms import (
    BASELINES,
    ArmMaker,
    ProbeOfEach,
    fit_probe,
    standard_arms,
    with_probe,
)
from aotoolkit.evals.tasks.base import as_turns
from aotoolkit.evals.tasks.classification import PredicateClassification
from aotoolkit.evals.tasks.generative import GenerativeQA
from aotoolkit.evals.tasks.hidden_prompt import HiddenPrompt, HiddenSystemPrompt, deal
from aotoolkit.evals.tasks.prompt_files import (
    read_hidden_prompts,
    read_published_predicates,
    read_relation,
    read_text_questions,
)
from aotoolkit.evals.tasks.relations import RelationExtraction
from aotoolkit.evals.tasks.splice import SpliceGroup, StateNotTokens
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import AnswerConfidenceKind
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer

FilePath = str | os.PathLike[str]

LEAK_CHECKS: tuple[LeakCheck, ...] = (TrainedOnThisBase(),)

_PROBE_TURNS = 4


def aobench_suite(
    model: TracedModel,
    *,
    oracles: Mapping[str, Oracle],
    layers: Layer | Sequence[Layer],
    classification: FilePath | None = None,
    latentqa: FilePath | None = None,
    relations: Mapping[str, str] | None = None,
    max_items: int = 100,
    controls: Sequence[ArmControl] = ARM_CONTROLS,
    baselines: Sequence[str] = BASELINES,
    probe: bool = True,
    max_new_tokens: int = 32,
    confidence: AnswerConfidenceKind | None = None,
    leak_checks: tuple[LeakCheck, ...] = LEAK_CHECKS,
    seed: int = 0,
) -> Suite:
    """Classification, hidden prompts, splice pairs, generative QA and relation extraction.

    Args:
        model: The target; its base is read.
        oracles: Name in tables -> oracle; controls are those of the first.
        layers: Blocks that are read, or fractions of the depth.
        classification: Folder of the published statements and `paraphrases.json`.
        latentqa: Folder of LatentQA's files.
        relations: Tab-separated file -> what is asked of its subjects.
        max_items: At most so many texts of a predicate and class and so many pairs, drawn by
            `seed`; and so many hidden prompts, and questions of a kind, the first of the files.
        controls: Which controls.
        baselines: Which baselines, of `suites.arms.BASELINES`.
        probe: Whether linear probes are fitted on the base: on statements that are not asked about,
            and on the hidden prompts with other user's turns.
        max_new_tokens: Longest answer.
        confidence: How sure the oracles are of what they say; see `OracleArm`.
        leak_checks: What is checked before anything is answered; see `aotoolkit.evals.leaks`.
        seed: Of what is drawn.

    Raises:
        EvalError: No file was named.
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
    if classification is not None:
        task = PredicateClassification(
            predicates=read_published_predicates(classification),
            texts=max_items,
            layers=layers,
            seed=seed,
        )
        probes = _classification_probes(model, task, max_items)
        entries.append(SuiteEntry(task=task, arms=with_probe(arms, probes) if probe else arms))
    if latentqa is not None:
        prompts = read_hidden_prompts(latentqa)
        pairs = deal(prompts, size=2, seed=seed)[:max_items]
        hidden = HiddenSystemPrompt(prompts=prompts[:max_items], layers=layers, seed=seed)
        probes = hidden_probe(model, hidden)
        entries.append(SuiteEntry(task=hidden, arms=with_probe(arms, probes) if probe else arms))
        splices = StateNotTokens(
            groups=_each_name_once([spliced(pair) for pair in pairs]),
            tokenizer=model.tokenizer,
            layers=layers,
        )
        entries.append(SuiteEntry(task=splices, arms=arms))
        questions = read_text_questions(latentqa)
        for kind in dict.fromkeys(asked.kind for asked in questions):
            own = [asked for asked in questions if asked.kind == kind][:max_items]
            task = GenerativeQA(questions=own, name=f"generative_qa/{kind}", layers=layers)
            entries.append(SuiteEntry(task=task, arms=arms))
    for file, question in (relations or {}).items():
        relation = read_relation(file)
        task = RelationExtraction(
            relation=relation, question=question, name=f"relation/{relation.name}", layers=layers
        )
        entries.append(SuiteEntry(task=task, arms=arms))
    if not entries:
        raise EvalError(
            "There is nothing to evaluate: name a folder as classification= or latentqa=, or files "
            "as relations=."
        )
    return Suite(name="aobench", entries=tuple(entries), leak_checks=leak_checks)


def spliced(pair: Sequence[HiddenPrompt]) -> SpliceGroup:
    """Two system turns before one user's turn, the first prompt's."""
    turns = as_turns(pair[0].turns)
    return SpliceGroup(
        name="/".join(prompt.label for prompt in pair),
        prompts={
            prompt.answer: ({"role": "system", "content": prompt.system}, *turns) for prompt in pair
        },
        question=pair[0].question,
    )


def _each_name_once(groups: Sequence[SpliceGroup]) -> list[SpliceGroup]:
    """Numbers those of one name: data may have several entries of one label."""
    times = Counter(group.name for group in groups)
    seen: Counter[str] = Counter()
    numbered = []
    for group in groups:
        seen[group.name] += 1
        name = group.name if times[group.name] == 1 else f"{group.name} {seen[group.name]}"
        numbered.append(replace(group, name=name))
    return numbered


def _classification_probes(
    model: TracedModel, task: PredicateClassification, limit: int
) -> ArmMaker:
    def make(_: Sequence[EvalItem]) -> list[Arm]:
        return [
            ProbeOfEach(
                {
                    predicate.name: fit_probe(
                        model, task, task.placed(model, task.spare_specs(predicate, limit))
                    )
                    for predicate in task.predicates
                }
            )
        ]

    return make


def hidden_probe(model: TracedModel, task: HiddenSystemPrompt) -> ArmMaker:
    """Each hidden prompt with other user's turns, read at the last token."""

    def make(_: Sequence[EvalItem]) -> list[Arm]:
        prompts = [prompt for group in task.dealt for prompt in group]
        specs = []
        for number, prompt in enumerate(prompts):
            others = [prompts[(number + step) % len(prompts)] for step in range(1, len(prompts))]
            for turn, other in enumerate(others[:_PROBE_TURNS]):
                chat = ({"role": "system", "content": prompt.system}, *as_turns(other.turns))
                specs.append(
                    ItemSpec(
                        id=f"{number}/{turn}",
                        task=task.name,
                        unit=prompt.label,
                        question="",
                        answers=(prompt.answer,),
                        prompt=chat,
                        positions=(-1,),
                    )
                )
        return [fit_probe(model, task, specs)]

    return make
