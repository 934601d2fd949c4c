"""The suite `nano`: every task on the embedded models, with all that an oracle is compared with."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from aotoolkit.data import LayerChoice
from aotoolkit.evals.arms import ARM_CONTROLS, Arm, ArmControl
from aotoolkit.evals.baselines import CrossFittedProbe
from aotoolkit.evals.items import EvalItem
from aotoolkit.evals.leaks import HeldOutWords, StatesItsSecret, TrainedOnThisBase
from aotoolkit.evals.suite import Suite, SuiteEntry
from aotoolkit.evals.suites.arms import BASELINES, standard_arms, with_probe
from aotoolkit.evals.tasks import PromptTask
from aotoolkit.nano import eval_probes as probes
from aotoolkit.nano.corpus import FACT_ATTRIBUTES, chat
from aotoolkit.nano.eval_tasks import NanoTasks
from aotoolkit.nano.load import Nano
from aotoolkit.nano.mixture import NanoSource
from aotoolkit.nano.organisms import KINDS, Kind
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import AnswerConfidenceKind

MAX_NEW_TOKENS = 12
QUICK_CONTROLS: tuple[ArmControl, ...] = ("no_activation", "base", "other_unit")
QUICK_BASELINES = ("logit_lens", "prompting")
# Of the oracle's training data about secrets, whose answers are searched for held-out words.
SEARCHED_DOCUMENTS = 3000

ProbeMaker = Callable[[Sequence[EvalItem]], Sequence[Arm]]


def nano_suite(
    lab: Nano,
    *,
    oracles: Mapping[str, Oracle | Mapping[int, Oracle]] | None = None,
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
            by default the one that was loaded. Controls are those of the first, and its recommended
            layers are read.
        quick: a quarter of the items or fewer, and few controls and baselines.
        baselines: whether baselines take part.
        headers: whether secrets are also read at the header of a reply alone.
        confidence: how sure the oracles are of what they say; see `OracleArm`.
    """
    oracles = oracles or {"oracle": lab.oracle}
    first = next(iter(oracles.values()))
    contract = (first if isinstance(first, Oracle) else next(iter(first.values()))).contract
    tasks = NanoTasks(
        lab, layers=contract.recommended.layers or contract.read_layers[:1], quick=quick
    )
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
        leak_checks=(
            TrainedOnThisBase(),
            StatesItsSecret(),
            HeldOutWords(lab.world.held_out, _answers_about_secrets(lab)),
        ),
    )


def _tasks_and_probes(
    lab: Nano, tasks: NanoTasks, loaded: Collection[Kind], *, quick: bool, headers: bool
) -> list[tuple[PromptTask, ProbeMaker | None]]:
    def told(task: PromptTask, *, hints: bool, replies: bool) -> tuple[PromptTask, ProbeMaker]:
        def fit(items: Sequence[EvalItem]) -> list[Arm]:
            arms = probes.told_words(lab, task, items, hints=hints, replies=replies)
            if not quick:  # it takes a word for each in the world
                arms += probes.told_other_words(lab, task, hints=hints, replies=replies)
            return arms

        return task, fit

    made: list[tuple[PromptTask, ProbeMaker | None]] = []
    if "taboo" in loaded:
        made.append(told(tasks.taboo_hint(), hints=True, replies=False))
        made.append(told(tasks.taboo_refusal(), hints=False, replies=False))
    if "user_trait" in loaded:
        trait = tasks.user_trait()
        made.append((trait, partial(probes.told_places, lab, trait)))
    if "bad_advice" in loaded:
        made.append((tasks.model_diffing(), lambda _: [CrossFittedProbe()]))
    for task in (tasks.classification(), tasks.classification_held_out()):
        made.append((task, lambda _, task=task: probes.predicates(lab, task)))
    made.append(told(tasks.hidden_prompt(), hints=True, replies=True))
    for name in FACT_ATTRIBUTES:
        made.append((tasks.relation(name), lambda _, name=name: probes.relation(lab, tasks, name)))
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
    source = NanoSource(
        name="secret",
        tokenizer=lab.tokenizer,
        layers=LayerChoice(lab.oracle.contract.read_layers),
        task="secret",
    )
    groups = source.groups(seed=0)
    return [example.answer for _ in range(SEARCHED_DOCUMENTS) for example in next(groups)]
