"""The suites on the embedded models: `nano`, which has every task, and `latentqa`."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import get_args

from aotoolkit.data import LayerChoice
from aotoolkit.evals.arms import ARM_CONTROLS, Arm, ArmControl
from aotoolkit.evals.baselines import CrossFittedProbe
from aotoolkit.evals.items import EvalItem
from aotoolkit.evals.leaks import HeldOutWords, LeakCheck, StatesItsSecret, TrainedOnThisBase
from aotoolkit.evals.suite import Suite, SuiteEntry
from aotoolkit.evals.suites.arms import BASELINES, standard_arms, with_probe
from aotoolkit.evals.suites.latentqa import LATENTQA_BASELINES
from aotoolkit.evals.tasks import PromptTask
from aotoolkit.nano import eval_probes as probes
from aotoolkit.nano.corpus import FACT_ATTRIBUTES, chat
from aotoolkit.nano.eval_tasks import Form, NanoTasks
from aotoolkit.nano.load import Nano
from aotoolkit.nano.mixture import NanoSource
from aotoolkit.nano.organisms import KINDS, Kind
from aotoolkit.nano.world import ATTRIBUTES
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import AnswerConfidenceKind
from aotoolkit.tracing.activations import Layer

MAX_NEW_TOKENS = 12
QUICK_CONTROLS: tuple[ArmControl, ...] = ("no_activation", "base", "other_unit")
QUICK_BASELINES = ("logit_lens", "prompting")
QUICK_LATENTQA = ("prompting", "text_reader")
# Of each of the oracle's tasks about secrets, whose answers are searched for held-out words.
SEARCHED_DOCUMENTS = 3000

Oracles = Mapping[str, Oracle | Mapping[int, Oracle]]
ProbeMaker = Callable[[Sequence[EvalItem]], Sequence[Arm]]


def nano_suite(
    lab: Nano,
    *,
    oracles: Oracles | None = None,
    layers: Layer | Sequence[Layer] | None = None,
    quick: bool = False,
    baselines: bool = True,
    headers: bool = False,
    confidence: AnswerConfidenceKind | None = None,
) -> Suite:
    """All tasks on the embedded models.

    Args:
        lab: the models, with organisms of all kinds: `nano.load(kinds=nano.KINDS)`. A task whose
            organisms are not among them is left out, and the table says so.
        oracles: name in tables -> oracle, or training seed -> oracle where several make one row;
            by default the one that was loaded. Controls are those of the first.
        layers: what is read; by default the layers that the first oracle recommends, and of taboo
            organisms the demo's.
        quick: a quarter of the items or fewer, one attribute of several, and few controls and
            baselines.
        baselines: whether baselines take part.
        headers: whether secrets are also read at the header of a reply alone.
        confidence: how sure the oracles are of what they say; see `OracleArm`.
    """
    oracles = oracles or {"oracle": lab.oracle}
    tasks = _tasks(lab, oracles, layers, quick=quick)
    chosen = () if not baselines else QUICK_BASELINES if quick else BASELINES
    arms = standard_arms(
        lab.model,
        oracles,
        controls=QUICK_CONTROLS if quick else ARM_CONTROLS,
        baselines=chosen,
        neutral_prompts=[chat(request) for request in probes.FIT_HINT_REQUESTS],
        max_new_tokens=MAX_NEW_TOKENS,
        confidence=confidence,
    )
    loaded: set[Kind] = {organism.kind for organism in lab.organisms.values()}
    return Suite(
        name="nano",
        notes=(
            "Lenses and probes only choose among the candidates: compare them with the oracle's "
            "forced choice, not with its free answers.",
            *(
                f"No organisms of the kind {kind!r} are loaded, so their tasks are left out."
                for kind in KINDS
                if kind not in loaded
            ),
        ),
        entries=tuple(
            SuiteEntry(task=task, arms=arms if probe is None else with_probe(arms, probe))
            for task, probe in _tasks_and_probes(lab, tasks, loaded, quick=quick, headers=headers)
        ),
        leak_checks=_leak_checks(lab),
    )


def nano_latentqa_suite(
    lab: Nano,
    *,
    oracles: Mapping[str, Oracle] | None = None,
    layers: Layer | Sequence[Layer] | None = None,
    quick: bool = False,
    baselines: bool = True,
    confidence: AnswerConfidenceKind | None = None,
) -> Suite:
    """LatentQA's reading tasks on the embedded base: hidden system prompts, relations.

    Args:
        lab: the models; organisms take no part.
        oracles: name in tables -> oracle; by default those that were loaded: the activation oracle,
            and the LatentQA decoder where there is one. Controls are those of the first.
        layers: what is read; by default the layers that the first oracle recommends.
        quick: a quarter of the items or fewer, and few controls and baselines.
        baselines: whether baselines take part.
        confidence: how sure the oracles are of what they say; see `OracleArm`.
    """
    if not oracles:
        oracles = {"oracle": lab.oracle}
        if lab.decoder is not None:
            oracles["decoder"] = lab.decoder
    tasks = _tasks(lab, oracles, layers, quick=quick)
    chosen = () if not baselines else QUICK_LATENTQA if quick else LATENTQA_BASELINES
    arms = standard_arms(
        lab.model,
        oracles,
        controls=QUICK_CONTROLS if quick else ARM_CONTROLS,
        baselines=chosen,
        max_new_tokens=MAX_NEW_TOKENS,
        confidence=confidence,
    )
    made: list[tuple[PromptTask, ProbeMaker]] = []
    for form in get_args(Form):
        task = tasks.hidden_prompt_form(form)
        made.append(_told(lab, task, hints=True, replies=True, quick=quick))
    made += _relations(lab, tasks, quick=quick)
    return Suite(
        name="latentqa",
        entries=tuple(SuiteEntry(task=task, arms=with_probe(arms, probe)) for task, probe in made),
        leak_checks=_leak_checks(lab),
    )


def _tasks(
    lab: Nano,
    oracles: Oracles,
    layers: Layer | Sequence[Layer] | None,
    *,
    quick: bool,
) -> NanoTasks:
    first = next(iter(oracles.values()))
    contract = (first if isinstance(first, Oracle) else next(iter(first.values()))).contract
    if layers is None:
        recommended = contract.recommended.layers or contract.read_layers[:1]
        return NanoTasks(lab, layers=recommended, quick=quick)
    named = layers if isinstance(layers, Sequence) else [layers]
    read = [lab.model.resolve_layer(one) for one in named]
    return NanoTasks(lab, layers=read, taboo_layers=read, quick=quick)


def _leak_checks(lab: Nano) -> tuple[LeakCheck, ...]:
    return (
        TrainedOnThisBase(),
        StatesItsSecret(),
        HeldOutWords(lab.world.held_out, _answers_about_secrets(lab)),
    )


def _told(
    lab: Nano, task: PromptTask, *, hints: bool, replies: bool, quick: bool
) -> tuple[PromptTask, ProbeMaker]:
    """A task whose answer is a secret word, with its skylines."""

    def fit(items: Sequence[EvalItem]) -> list[Arm]:
        arms = probes.told_words(lab, task, items, hints=hints, replies=replies, quick=quick)
        if not quick:  # it takes a word for each in the world
            arms += probes.told_other_words(lab, task, hints=hints, replies=replies)
        return arms

    return task, fit


def _relations(lab: Nano, tasks: NanoTasks, *, quick: bool) -> list[tuple[PromptTask, ProbeMaker]]:
    return [
        (tasks.relation(name), lambda _, name=name: probes.relation(lab, tasks, name))
        for name in _asked_for(FACT_ATTRIBUTES, quick=quick)
    ]


def _asked_for(attributes: Iterable[str], *, quick: bool) -> list[str]:
    """Attributes that are a task each; of a quick run the first stands for all."""
    return list(attributes)[: 1 if quick else None]


def _tasks_and_probes(
    lab: Nano, tasks: NanoTasks, loaded: Collection[Kind], *, quick: bool, headers: bool
) -> list[tuple[PromptTask, ProbeMaker | None]]:
    told = partial(_told, lab, quick=quick)
    made: list[tuple[PromptTask, ProbeMaker | None]] = []
    if "taboo" in loaded:
        made.append(told(tasks.taboo_hint(), hints=True, replies=False))
        made.append(told(tasks.taboo_refusal(), hints=False, replies=False))
        facts = {name: tasks.taboo_fact(name) for name in _asked_for(FACT_ATTRIBUTES, quick=quick)}
        # All ask about the same texts, so their probes are fitted on the same as well.
        read = cache(lambda: probes.read_told(lab, next(iter(facts.values())), quick=quick))
        for name, fact in facts.items():
            made.append((fact, lambda _, name=name: probes.told_facts(lab, read(), name)))
    if "user_trait" in loaded:
        trait = tasks.user_trait()
        made.append((trait, partial(probes.told_places, lab, trait)))
    if "bad_advice" in loaded:
        made.append((tasks.model_diffing(), lambda _: [CrossFittedProbe()]))
    if "people" in loaded:
        for name in _asked_for(ATTRIBUTES, quick=quick):
            people = tasks.people(name)
            made.append(
                (people, lambda _, people=people, name=name: probes.people(lab, people, name))
            )
        asked = tasks.people_yes_no()
        made.append((asked, lambda _: probes.people_yes_no(lab, asked)))
    if "side_constraint" in loaded:
        made.append(told(tasks.side_constraint(), hints=True, replies=False))
    for task in (tasks.classification(), tasks.classification_held_out()):
        made.append((task, lambda _, task=task: probes.predicates(lab, task)))
    made.append(told(tasks.hidden_prompt(), hints=True, replies=True))
    made += _relations(lab, tasks, quick=quick)
    generative = tasks.generative()
    made.append((generative, None if quick else lambda _: probes.stated_facts(lab, generative)))
    made.append(told(tasks.state(), hints=False, replies=True))
    if headers:
        made.append(told(tasks.state_header(), hints=False, replies=False))
        if "taboo" in loaded:
            made.append(told(tasks.taboo_header(), hints=True, replies=False))
    if "taboo" in loaded:
        vague = tasks.vagueness()
        # Its answers are free, so that no probe of the candidates could give them.
        other = partial(probes.told_other_words, lab, vague, hints=True, replies=False)
        made.append((vague, None if quick else lambda _: other()))
    return made


def _answers_about_secrets(lab: Nano) -> list[str]:
    answers: list[str] = []
    for task in ("secret", "secret_dialogue"):
        source = NanoSource(
            name=task,
            tokenizer=lab.tokenizer,
            layers=LayerChoice(lab.oracle.contract.read_layers),
            task=task,
        )
        groups = source.groups(seed=0)
        answers += [example.answer for _ in range(SEARCHED_DOCUMENTS) for example in next(groups)]
    return answers
