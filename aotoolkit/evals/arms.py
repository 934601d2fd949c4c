"""What is compared: oracles, their controls, baselines and skylines, all behind one interface.

An arm gets items and gives one answer for each. Nothing else is asked of it, so that a new baseline
is one class with `name`, `kind` and `answer`. Three more attributes are looked at where there are
any: `whole_task` (true where the arm needs all items of a task at once), `oracle_seed` (which
training seed's oracle the arm asks; arms of one name and different seeds are one row of a table)
and `identity` (what its answers depend on, as JSON; see `aotoolkit.evals.identity`).
"""

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.oracle import Answer, Choice, Oracle, VectorTransform
from aotoolkit.oracle.confidence import AnswerConfidenceKind, Confidence
from aotoolkit.oracle.controls import ControlName, random_vectors, shuffled_vectors
from aotoolkit.tracing import Activations

Kind = Literal["oracle", "control", "baseline", "skyline"]
ArmControl = Literal["no_activation", "zero", "random", "shuffled", "base", "other_unit"]
ARM_CONTROLS: tuple[ArmControl, ...] = (
    "no_activation",
    "zero",
    "random",
    "shuffled",
    "base",
    "other_unit",
)


class Arm(Protocol):
    """Anything that answers items.

    Attributes:
        name: As it stands in tables and results.
        kind: An oracle; a control, which has the oracle without the evidence; a baseline, which is
            another method; or a skyline, which has what no method may have, such as labels.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> Kind: ...  # noqa: D102

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """One answer for each item, in their order.

        Raises:
            ArmNotApplicableError: The arm cannot say anything about such items.
        """
        ...


def item_seed(seed: int, item: EvalItem) -> int:
    """A seed for one item: the same whichever other items are answered with it."""
    digest = hashlib.sha256(f"{seed}/{item.task}/{item.id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def ask_items(
    oracle: Oracle,
    items: Sequence[EvalItem],
    evidence: Sequence[Activations],
    *,
    arm: str,
    max_new_tokens: int,
    **options: Any,
) -> list[ArmAnswer]:
    """Asks an oracle each item's question about `evidence`; a forced choice where it has choices.

    How sure it is of an answer stands in `details["confidence"]`: of a forced choice, or without
    choices the probability of the answer; and beside it the `confidence` that was asked for.

    Args:
        oracle: The oracle.
        items: The items.
        evidence: What is injected for each.
        arm: Name of the arm in the answers.
        max_new_tokens: Longest answer.
        **options: Of `Oracle.ask`; without them greedy, at the coefficient of training. None for
            `coefficient` or `do_sample` goes by what the contract recommends.

    Raises:
        ArmNotApplicableError: `agreement` is asked for of items that read one position.
    """
    if not items:
        return []
    asked_for = options.get("confidence")
    if asked_for == "agreement" and any(len(acts) < 2 for acts in evidence):
        raise ArmNotApplicableError(
            "Agreement across positions needs two or more of them, and these items read one. Read "
            "more positions, or ask for another confidence."
        )
    options = _stated(oracle, options)
    answers = _asked(
        oracle,
        items,
        evidence,
        window="all",  # the item says what is read
        controls=False,
        max_new_tokens=max_new_tokens,
        **({"confidence": "log_probability"} | options),
    )
    chosen = _choices(oracle, items, evidence, options)
    sure: dict[str, list[Confidence | None]] = {
        item.id: [chosen[item.id].confidence] if item.choices else [] for item in items
    }
    for item, answer in zip(items, answers, strict=True):
        if asked_for is not None or not item.choices:
            sure[item.id].append(answer.confidence)
    return [
        ArmAnswer(
            item=item.id,
            arm=arm,
            text=answer.text,
            scores=_by_choice(item, chosen[item.id]) if item.choices else {},
            details={
                "log_prob": answer.log_prob,
                "layers": list(answer.layers),
                "confidence": [_kept(one) for one in sure[item.id] if one is not None],
            },
        )
        for item, answer in zip(items, answers, strict=True)
    ]


def _asked(
    oracle: Oracle,
    items: Sequence[EvalItem],
    evidence: Sequence[Activations],
    **options: Any,
) -> list[Answer]:
    greedy = options.get("do_sample") is False and options["confidence"] != "mode_frequency"
    if greedy:
        return oracle.ask([item.question for item in items], list(evidence), **options)
    answers = []
    devices = [oracle.model.device] if oracle.model.device.type != "cpu" else []
    kind = oracle.model.device.type if devices else "cuda"
    for item, acts in zip(items, evidence, strict=True):
        # Its own seed, so that what is drawn does not depend on the items beside it.
        with torch.random.fork_rng(devices=devices, device_type=kind):
            torch.manual_seed(item_seed(0, item))
            answers.append(oracle.ask(item.question, acts, **options))
    return answers


def _kept(confidence: Confidence) -> dict[str, Any]:
    """What a record keeps; the choices' log-probabilities are its scores."""
    return {
        "kind": confidence.kind,
        "value": confidence.value,
        "raw": confidence.raw,
        "n": confidence.n,
        "calibrated": confidence.calibrated,
        "abstain": confidence.abstain,
    }


def _stated(oracle: Oracle, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `Oracle.ask` with those stated that a contract could otherwise recommend.

    Recommendations were found on some layers and for the trained oracle. Left to them, an
    evaluation would be random where a temperature is recommended, and controls and the untrained
    oracle would be asked as suits the oracle that they are compared with.
    """
    sampling = (
        {"temperature": 1.0}
        if options.get("confidence") == "mode_frequency"
        else {"do_sample": bool(options.get("temperature"))}
    )
    return {"coefficient": oracle.contract.coefficient, **sampling, **options}


def _choices(
    oracle: Oracle,
    items: Sequence[EvalItem],
    evidence: Sequence[Activations],
    options: Mapping[str, Any],
    *,
    controls: Sequence[ControlName] = (),
) -> dict[str, Choice]:
    """The forced choice of each item that has choices, by its id."""
    scored = [(item, acts) for item, acts in zip(items, evidence, strict=True) if item.choices]
    if not scored:
        return {}
    # Those options of `Oracle.ask` that `Oracle.choose` takes too.
    shared = ("coefficient", "max_batch", "allow_other_base")
    chosen = oracle.choose(
        [item.question for item, _ in scored],
        [acts for _, acts in scored],
        [[item.said(choice) for choice in item.choices] for item, _ in scored],
        window="all",
        controls=controls,
        **{name: options[name] for name in shared if name in options},
    )
    return {item.id: choice for (item, _), choice in zip(scored, chosen, strict=True)}


def _by_choice(item: EvalItem, choice: Choice) -> dict[str, float]:
    return {name: choice.log_probs[item.said(name)] for name in item.choices}


class OracleArm:
    """An oracle, asked about what was read."""

    kind: Kind = "oracle"

    def __init__(
        self,
        oracle: Oracle,
        *,
        name: str = "oracle",
        seed: int | None = None,
        max_new_tokens: int = 32,
        confidence: AnswerConfidenceKind | None = None,
        **options: Any,
    ) -> None:
        """An oracle as an arm.

        Args:
            oracle: The oracle.
            name: As it stands in tables.
            seed: Of its training, where oracles of several seeds make one row; not for asking.
            max_new_tokens: Longest answer.
            confidence: How sure it is of what it says, beside its forced choice. Without it the
                probability of the answer, where there are no choices. `mode_frequency` asks
                `num_samples` times and answers with the most frequent, `agreement` once more for
                each position.
            **options: Of `Oracle.ask`; without them greedy, at the coefficient of training.
        """
        self.oracle = oracle
        self.name = name
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self.options = options if confidence is None else {**options, "confidence": confidence}

    @property
    def oracle_seed(self) -> int | None:
        """The seed; see the module."""
        return self.seed

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        return ask_items(
            self.oracle,
            items,
            [item.activations for item in items],
            arm=self.name,
            max_new_tokens=self.max_new_tokens,
            **self.options,
        )


class ControlArm:
    """The same oracle and questions, with other evidence or none.

    `base`: the same text read from the base, which is what guessing from the text gives.
    `other_unit`: what was read for an item of another unit with other answers, which is what an
    oracle gives that reads *that* there is a secret but not *which*; give it all items of a task
    at once. `zero` and `random` stand in the place of the vectors after the oracle's transform,
    as they do in `Oracle.ask`. `shuffled` keeps the evidence and changes its order. `no_activation`
    leaves the placeholders out.
    """

    kind: Kind = "control"

    def __init__(
        self,
        oracle: Oracle,
        control: ArmControl,
        *,
        name: str | None = None,
        seed: int = 0,
        oracle_seed: int | None = None,
        max_new_tokens: int = 32,
        **options: Any,
    ) -> None:
        """A control as an arm.

        Args:
            oracle: The oracle.
            control: Which control.
            name: As it stands in tables; default: the control's.
            seed: Of the random ones; each item has its own from it.
            oracle_seed: Of the oracle's training, where oracles of several seeds make one row.
            max_new_tokens: Longest answer.
            **options: Of `Oracle.ask`; without them greedy, at the coefficient of training.

        Raises:
            EvalError: There is no such control.
        """
        if control not in ARM_CONTROLS:
            raise EvalError(f"control is {control!r}; give one of {', '.join(ARM_CONTROLS)}.")
        self.oracle = oracle
        self.control = control
        self.name = name or control
        self.seed = seed
        self.oracle_seed = oracle_seed
        self.whole_task = control == "other_unit"
        self.max_new_tokens = max_new_tokens
        self.options = options
        # Vectors made here are put where transformed ones would be.
        contract = dataclasses.replace(oracle.contract, transform="none")
        self._plain = Oracle(
            oracle.model,
            oracle.adapter,
            contract,
            transform=VectorTransform(),
            tokenizer=oracle.tokenizer,
        )

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        asked = {"arm": self.name, "max_new_tokens": self.max_new_tokens, **self.options}
        if self.control == "base":
            return ask_items(self.oracle, items, [_base(item) for item in items], **asked)
        if self.control == "other_unit":
            return ask_items(self.oracle, items, self._of_other_units(items), **asked)
        if self.control == "no_activation":
            return self._without_placeholders(items)
        return ask_items(self._plain, items, [self._made(item) for item in items], **asked)

    def _made(self, item: EvalItem) -> Activations:
        acts = item.activations
        vectors = self.oracle.transform.apply(
            acts.vectors.float().cpu(),
            layers=acts.layers,
            token_ids=acts.token_ids,
            difference=acts.provenance.subtracted is not None,
        )
        if self.control == "zero":
            vectors = torch.zeros_like(vectors)
        elif self.control == "random":
            vectors = random_vectors(vectors, seed=item_seed(self.seed, item))
        elif len(acts) > 1:
            vectors = shuffled_vectors(vectors, seed=item_seed(self.seed, item))
        else:
            raise ArmNotApplicableError(
                f"Item {item.id!r} reads one position, which cannot be shuffled. Leave the control "
                "'shuffled' out, or read more positions."
            )
        return dataclasses.replace(acts, vectors=vectors)

    def _of_other_units(self, items: Sequence[EvalItem]) -> list[Activations]:
        evidence = []
        for item in items:
            others = [
                other
                for other in items
                if other.unit != item.unit and not set(other.answers) & set(item.answers)
            ]
            if not others:
                raise ArmNotApplicableError(
                    f"No item of another unit than {item.unit!r} has other answers than "
                    f"{item.answers}. Give the control 'other_unit' all items of a task."
                )
            chosen = random.Random(item_seed(self.seed, item)).choice(others)
            evidence.append(chosen.activations)
        return evidence

    def _without_placeholders(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        if not items:
            return []
        options = _stated(self._plain, self.options)
        # The answers are not used: equal zeros in place of the evidence make them one row.
        zeros = [
            dataclasses.replace(acts, vectors=torch.zeros_like(acts.vectors))
            for acts in (item.activations[:1] for item in items)
        ]
        answers = self._plain.ask(
            [item.question for item in items],
            zeros,
            window="all",
            controls=("no_activation",),
            max_new_tokens=self.max_new_tokens,
            **options,
        )
        chosen = _choices(self._plain, items, zeros, options, controls=("no_activation",))
        return [
            ArmAnswer(
                item=item.id,
                arm=self.name,
                text=answer.controls["no_activation"],
                scores=_by_choice(item, chosen[item.id].controls["no_activation"])
                if item.choices
                else {},
            )
            for item, answer in zip(items, answers, strict=True)
        ]


def _base(item: EvalItem) -> Activations:
    if item.base_activations is None:
        raise ArmNotApplicableError(
            f"Item {item.id!r} has no activations of its text in the base: it was read from the "
            "base itself, or is a difference. Give it a base_prompt, or leave the control 'base' "
            "out."
        )
    return item.base_activations
