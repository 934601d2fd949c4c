"""The arms that suites of real models share: oracles, controls, baselines, and a probe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aotoolkit.errors import EvalError
from aotoolkit.evals.arms import ARM_CONTROLS, Arm, ArmControl, ControlArm, Kind, OracleArm
from aotoolkit.evals.baselines import (
    PATCHSCOPES_IDENTITY,
    LinearProbe,
    LogitLens,
    MeanDifferenceLens,
    PatchedPrompt,
    Prefill,
    Prompting,
    TextReader,
    TokenSimilarity,
    UntrainedOracle,
    UserTurn,
    Voted,
)
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec, read_items
from aotoolkit.evals.tasks.base import PromptTask, with_replies
from aotoolkit.oracle import Oracle
from aotoolkit.oracle.confidence import AnswerConfidenceKind
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Prompt

ArmMaker = Callable[[Sequence[EvalItem]], Sequence[Arm]]

BASELINES = (
    "untrained",
    "selfie",
    "patchscopes",
    "logit_lens",
    "token_similarity",
    "mean_difference",
    "prompting",
    "prefill",
    "user_turn",
    "samples",
    "text_reader",
)
# What a probe's own prompt says in the place of what an organism was fine-tuned to hold.
_LABEL_SLOT = "{label}"


def standard_arms(
    model: TracedModel,
    oracles: Mapping[str, Oracle | Mapping[int, Oracle]],
    *,
    controls: Sequence[ArmControl] = ARM_CONTROLS,
    baselines: Sequence[str] = BASELINES,
    neutral_prompts: Sequence[Prompt] = (),
    max_new_tokens: int = 32,
    confidence: AnswerConfidenceKind | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Arm, ...]:
    """Oracles, controls of the first of them, and baselines.

    An arm that has nothing to say about a task says so when it is asked
    (`ArmNotApplicableError`), so all tasks may be given the same.

    Args:
        model: The target.
        oracles: Name in tables -> oracle, or training seed -> oracle where several make one row;
            the first is the one that is controlled.
        controls: Which controls.
        baselines: Which baselines, of `BASELINES`.
        neutral_prompts: For `mean_difference`, which is left out without any.
        max_new_tokens: Longest answer.
        confidence: How sure the oracles are of what they say; see `OracleArm`.
        chat_template_kwargs: For the prompts of baselines; default: those of the first oracle's
            contract.
        seed: Of what is drawn.

    Raises:
        EvalError: There is no oracle, or a baseline of another name.
    """
    if not oracles:
        raise EvalError("There is no oracle to evaluate; give one, as {'its name': oracle}.")
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise EvalError(f"There are no baselines {unknown}; give some of {', '.join(BASELINES)}.")
    named = [(name, seed, one) for name, own in oracles.items() for seed, one in _seeds(own)]
    first = named[0][2]
    if chat_template_kwargs is None:
        chat_template_kwargs = first.contract.chat_template_kwargs
    written = {"max_new_tokens": max_new_tokens, "chat_template_kwargs": chat_template_kwargs}
    make: dict[str, Callable[[], Arm]] = {
        "untrained": lambda: UntrainedOracle(first, max_new_tokens=max_new_tokens),
        "selfie": lambda: PatchedPrompt(model, name="SelfIE", **written),
        "patchscopes": lambda: PatchedPrompt(
            model, name="Patchscopes", carrier=PATCHSCOPES_IDENTITY, **written
        ),
        "logit_lens": lambda: LogitLens(model),
        "token_similarity": lambda: TokenSimilarity(model),
        "mean_difference": lambda: MeanDifferenceLens(model, neutral_prompts),
        "prompting": lambda: Prompting(model, **written),
        "prefill": lambda: Prefill(model, **written),
        "user_turn": lambda: UserTurn(model, **written),
        "samples": lambda: Voted(Prompting(model, **written), seed=seed),
        "text_reader": lambda: TextReader(model, **written),
    }
    return (
        *(
            OracleArm(
                oracle,
                name=name,
                seed=training_seed,
                max_new_tokens=max_new_tokens,
                confidence=confidence,
            )
            for name, training_seed, oracle in named
        ),
        *(
            ControlArm(first, control, seed=seed, max_new_tokens=max_new_tokens)
            for control in controls
        ),
        *(
            make[name]()
            for name in dict.fromkeys(baselines)
            if name != "mean_difference" or neutral_prompts
        ),
    )


def _seeds(given: Oracle | Mapping[int, Oracle]) -> list[tuple[int | None, Oracle]]:
    return [(None, given)] if isinstance(given, Oracle) else list(given.items())


def told_probe(
    model: TracedModel, task: PromptTask, *, prompts: Sequence[str], system: str
) -> ArmMaker:
    """A probe of what the base holds when it is told in a system turn what organisms hold unasked.

    It is fitted on the base alone and applied to the organisms unchanged, as an oracle is.

    Args:
        model: The target.
        task: Whose layers, positions and reply are taken.
        prompts: Users' turns, none of which the task asks about.
        system: The system turn, with `{label}` in the place of a choice.

    Returns:
        A function from items to the probe; the labels are their choices.

    Raises:
        EvalError: The system turn has no place for a label.
    """
    if system.count(_LABEL_SLOT) != 1:
        raise EvalError(f"system is {system!r}; it must hold {_LABEL_SLOT!r} once.")

    def make(items: Sequence[EvalItem]) -> list[Arm]:
        labels = list(dict.fromkeys(choice for item in items for choice in item.choices))
        specs = [
            ItemSpec(
                id=f"{label}/{number}",
                task=task.name,
                unit=label,
                question="",
                answers=(label,),
                prompt=(
                    {"role": "system", "content": system.replace(_LABEL_SLOT, label)},
                    {"role": "user", "content": prompt},
                ),
                positions=task.positions,
            )
            for label in labels
            for number, prompt in enumerate(prompts)
        ]
        return [fit_probe(model, task, specs)]

    return make


def with_probe(arms: Sequence[Arm], probe: ArmMaker) -> ArmMaker:
    """The arms, and what is fitted once the items are read."""
    return lambda items: [*arms, *probe(items)]


def fit_probe(model: TracedModel, task: PromptTask, specs: Sequence[ItemSpec]) -> LinearProbe:
    """A probe fitted on what the base holds of prompts, as a task reads them.

    Args:
        model: The target.
        task: Whose layers and reply are taken.
        specs: The prompts, without an adapter; the first answer of each is its label.

    Raises:
        EvalError: A prompt is of an adapter, or as `LinearProbe.fit`.
    """
    read = read_for_fit(model, task, specs)
    return LinearProbe.fit([item.activations for item in read], [item.answers[0] for item in read])


def read_for_fit(model: TracedModel, task: PromptTask, specs: Sequence[ItemSpec]) -> list[EvalItem]:
    """What the base holds of prompts, as a task reads them: with its layers and the base's reply.

    Args:
        model: The target.
        task: Whose layers and reply are taken.
        specs: The prompts, without an adapter.
    """
    made = list(specs)
    if task.reply:
        made = with_replies(
            model, made, max_new_tokens=task.max_reply_tokens, batch_size=task.batch_size
        )
    return read_items(model, made, layers=task.layers, batch_size=task.batch_size)


class ProbeOfEach:
    """A probe for each predicate: their answers are the same two words."""

    kind: Kind = "skyline"
    name = "linear probe"

    def __init__(self, probes: Mapping[str, LinearProbe]) -> None:
        """Probes by `item.details["predicate"]`."""
        self.probes = probes

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        answers: dict[int, ArmAnswer] = {}
        for predicate, probe in self.probes.items():
            own = [i for i, item in enumerate(items) if item.details["predicate"] == predicate]
            answers |= zip(own, probe.answer([items[i] for i in own]), strict=True)
        return [answers[i] for i in range(len(items))]
