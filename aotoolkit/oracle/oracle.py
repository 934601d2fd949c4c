"""Asking an oracle about activations."""

import dataclasses
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import ContractError, GenerationError, QuestionError
from aotoolkit.oracle.answer import Answer, AnswerGrid, Choice
from aotoolkit.oracle.batch import Row, span_shift
from aotoolkit.oracle.checkpoint import checkpoint_folder, checkpoint_tokenizer, save_checkpoint
from aotoolkit.oracle.contract import OracleContract, Window
from aotoolkit.oracle.controls import (
    ControlName,
    random_vectors,
    resolve_controls,
    shuffled_vectors,
)
from aotoolkit.oracle.evidence import Evidence, gather_evidence, transformed
from aotoolkit.oracle.generation import refuse_options
from aotoolkit.oracle.importers import find_contract
from aotoolkit.oracle.prompt import OraclePrompt, render_prompt
from aotoolkit.oracle.running import MAX_BATCH, OracleRunner
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.oracle.verification import (
    Check,
    check_adapter,
    check_contract,
    check_wiring,
    require,
)
from aotoolkit.tracing import Activations, TracedModel


class Oracle:
    """A model and an adapter that answer questions about activations.

    All methods that run the model take its lock and make the oracle's adapter live, and put back
    what was live before.

    Attributes:
        model: The oracle's base, shared with the target where both have the same.
        adapter: Name of the oracle's adapter in `model`; None asks the base itself, untrained.
        contract: How prompts are written and vectors injected.
        transform: What is done to vectors before injection. A difference of activations
            (`acts - other`) has no mean to take away, since it cancelled in the difference, so
            only the transform's linear part is applied to one.
        tokenizer: The tokenizer that prompts are written with.
        verified: What was checked when the oracle was loaded; empty for one made in memory.
    """

    def __init__(
        self,
        model: TracedModel,
        adapter: str | None,
        contract: OracleContract,
        *,
        transform: VectorTransform | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        verified: Sequence[Check] = (),
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.contract = contract
        self.transform = transform or VectorTransform()
        self.tokenizer = tokenizer or model.tokenizer
        self.verified = tuple(verified)
        self._runner = OracleRunner(model, adapter, contract, self.tokenizer)
        if self.transform.kind != contract.transform:
            raise ContractError(
                f"The contract says transform={contract.transform!r}, the transform given is "
                f"{self.transform.kind!r}. Pass the VectorTransform that the oracle was trained "
                "with."
            )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        model: TracedModel | None = None,
        contract: OracleContract | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads an oracle and verifies that it fits its contract.

        Args:
            path_or_id: A folder with a PEFT adapter, or a Hub id.
            model: The base, already loaded; the adapter goes into it under a free name. By
                default the contract's base is loaded.
            contract: Where the checkpoint has none of its own, or a wrong one.
            revision: Of the Hub repository.

        Raises:
            ModelNotFoundError: There is no such folder or repository.
            ContractError: The checkpoint does not describe itself and no contract was given.
            AdapterLoadError: There are no weights, or they do not fit the base.
            VerificationError: A check failed; the message names field, found and expected.
        """
        folder = checkpoint_folder(path_or_id, revision)
        contract = contract or find_contract(folder)
        if model is None:
            model = TracedModel.from_pretrained(
                contract.base_model, revision=contract.base_revision
            )
        tokenizer = checkpoint_tokenizer(folder, model)
        transform = VectorTransform.load(folder)
        checks = check_contract(contract, model, tokenizer, transform)
        require(checks, str(path_or_id))
        taken = model.adapter_names
        names = itertools.chain(["oracle"], (f"oracle_{i}" for i in itertools.count(2)))
        adapter = next(name for name in names if name not in taken)
        model.load_adapter(adapter, folder)
        try:
            checks += check_adapter(contract, model, adapter, folder)
            oracle = cls(model, adapter, contract, transform=transform, tokenizer=tokenizer)
            checks += (oracle._check_wiring(),)
            require(checks, str(path_or_id))
        except BaseException:
            model.delete_adapter(adapter)
            raise
        oracle.verified = checks
        return oracle

    def __repr__(self) -> str:
        return (
            f"Oracle({self.adapter!r} on {self.model.name}: {self.contract.dialect}, layers "
            f"{list(self.contract.read_layers)}, injects after block "
            f"{self.contract.inject_layer}, {self.contract.formula})"
        )

    @overload
    def ask(self, question: str, acts: Activations, **options: Any) -> Answer: ...

    @overload
    def ask(
        self,
        question: list[str] | tuple[str, ...],
        acts: Activations | Sequence[Activations],
        **options: Any,
    ) -> list[Answer]: ...

    @overload
    def ask(self, question: str, acts: Sequence[Activations], **options: Any) -> list[Answer]: ...

    def ask(
        self,
        question: str | list[str] | tuple[str, ...],
        acts: Activations | Sequence[Activations],
        *,
        window: Window | None = None,
        coefficient: float | None = None,
        max_new_tokens: int = 64,
        controls: bool | Sequence[ControlName] = True,
        do_sample: bool | None = None,
        seed: int = 0,
        max_batch: int = MAX_BATCH,
        allow_other_base: bool = False,
        **options: Any,
    ) -> Answer | list[Answer]:
        """Asks a question about activations, and the same without the evidence, in one batch.

        What is not stated here is as the contract recommends (`OracleContract.recommended`, which
        `aotoolkit sweep` measures): the layer, where the contract puts one in a prompt and the
        activations hold several (without a recommendation, choose: `acts.layer(18)`, or
        `ask_each`); the last positions, where the activations are of a whole prompt; coefficient
        and temperature. `Answer.layers`, `.positions` and `.provenance` say what was used.

        Args:
            question: A question, or a list of them.
            acts: Activations, or a list of them. Two lists are asked pair by pair.
            window: How many of the last positions of `acts` are asked about; "all" for every one.
                By default all, or what the contract recommends for a whole prompt.
            coefficient: Of the injection. By default what the contract recommends, or else what
                the oracle was trained with.
            max_new_tokens: Longest answer.
            controls: True for all that apply, False for none, or their names: `no_activation`
                (no placeholders), `zero`, `random` (directions, norms kept), `shuffled`
                (positions; from two on) and `base` (the same tokens read from the base, where an
                adapter was read).
            do_sample: Samples, with torch's global generator; greedy otherwise. By default it
                samples where a `temperature` above 0 is given here or recommended.
            seed: For the random and the shuffled control.
            max_batch: Most prompts in one batch.
            allow_other_base: Accepts activations of another base of the same width.
            **options: For transformers' `generate`, such as `temperature`.

        Returns:
            An answer, or a list of them where a list was given.

        Raises:
            QuestionError: A question is empty or holds a control token.
            LayerError: There are several layers and no rule to choose one.
            PositionError: `window` is none.
            ContractError: The formula `replace` has no other coefficient than 1.
            IncompatibleActivationsError: The activations are of another base or width.
            NonFiniteError: They hold NaN or Inf.
            ContextLengthError: Prompt and answer are longer than the context.
            GenerationError: An option would inject in wrong places.

        Warns:
            UntrainedLayerWarning: The oracle was not trained on the layer.
        """
        pairs, single = _broadcast(question, acts)
        names = resolve_controls(controls)
        evidence = self._evidence(
            [a for _, a in pairs], allow_other_base, base="base" in names, window=window
        )
        asked = [(q, e) for (q, _), e in zip(pairs, evidence, strict=True)]
        answers = self._answers(
            asked,
            names,
            coefficient=coefficient,
            seed=seed,
            max_batch=max_batch,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            **options,
        )
        done = [answer for answer in answers if answer is not None]
        return done[0] if single else done

    def ask_each(
        self,
        question: str,
        acts: Activations,
        *,
        coefficient: float | None = None,
        max_new_tokens: int = 64,
        controls: bool | Sequence[ControlName] = ("no_activation", "zero"),
        do_sample: bool | None = None,
        seed: int = 0,
        max_batch: int = MAX_BATCH,
        allow_other_base: bool = False,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> AnswerGrid:
        """Asks about each layer and token alone, in batches.

        Args:
            question: One question.
            acts: Activations of any number of layers and positions.
            coefficient: As `ask`.
            max_new_tokens: Longest answer.
            controls: As `ask`. The default two are the same for all tokens of a layer, and run
                once.
            do_sample: As `ask`.
            seed: As `ask`.
            max_batch: Most prompts in one batch.
            allow_other_base: As `ask`.
            stop: Ends the grid when it is set, from another thread. That, and interrupting, keep
                the cells that are done.
            **options: For transformers' `generate`.

        Raises:
            QuestionError, ContractError, IncompatibleActivationsError, NonFiniteError,
            ContextLengthError, GenerationError: As `ask`.

        Warns:
            UntrainedLayerWarning: The oracle was not trained on a layer.
        """
        names = resolve_controls(controls)
        (whole,) = self._evidence([acts], allow_other_base, base="base" in names, every_layer=True)
        cells = list(whole.cells())
        answers = self._answers(
            [(question, cell) for cell in cells],
            names,
            coefficient=coefficient,
            seed=seed,
            max_batch=max_batch,
            stop=stop or threading.Event(),
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            **options,
        )
        return AnswerGrid(
            question=question,
            layers=acts.layers,
            positions=acts.positions,
            tokens=acts.tokens,
            cells={
                (cell.layers[0], cell.positions[0]): answer
                for cell, answer in zip(cells, answers, strict=True)
                if answer is not None
            },
        )

    def stream(
        self,
        question: str,
        acts: Activations,
        *,
        window: Window | None = None,
        coefficient: float | None = None,
        max_new_tokens: int = 64,
        do_sample: bool | None = None,
        allow_other_base: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """The answer in pieces of text, as they come; without controls, otherwise as `ask`.

        Generation runs on a thread of its own, which holds the model's lock until the answer ends:
        do not iterate inside `with model.using(...)`. Closing the iterator stops generation.

        Raises:
            The errors of `ask`, at once.
        """
        refuse_options(options)
        (evidence,) = self._evidence([acts], allow_other_base, base=False, window=window)
        row = self._row(question, evidence, evidence.vectors)
        runner = self._runner_with(coefficient)
        runner.check_length([row], max_new_tokens)
        options = self._sampling(do_sample, options)
        return runner.stream(row, {"max_new_tokens": max_new_tokens, **options})

    def choose(
        self,
        question: str,
        acts: Activations,
        choices: Sequence[str],
        *,
        window: Window | None = None,
        coefficient: float | None = None,
        max_batch: int = MAX_BATCH,
        allow_other_base: bool = False,
    ) -> Choice:
        """Forced choice: the softmax over candidates of their log-probabilities as whole replies.

        Better calibrated than free text where the candidates are known (arXiv:2605.26045). Layers,
        positions and coefficient are as for `ask`.

        Raises:
            GenerationError: Fewer than two candidates, or one twice.
            QuestionError: The question or a candidate is empty or holds a control token.
        """
        if isinstance(choices, str) or len(choices) < 2 or len(set(choices)) < len(choices):
            raise GenerationError(f"choices is {choices!r}; give two or more different answers.")
        (evidence,) = self._evidence([acts], allow_other_base, base=False, window=window)
        rows = [self._row(question, evidence, evidence.vectors, choice) for choice in choices]
        log_probs = self._runner_with(coefficient).log_probs(rows, max_batch)
        probabilities = torch.tensor(log_probs, dtype=torch.float64).softmax(0).tolist()
        return Choice(
            question=question,
            log_probs=dict(zip(choices, log_probs, strict=True)),
            probabilities=dict(zip(choices, probabilities, strict=True)),
        )

    def score(
        self,
        question: str,
        acts: Activations,
        answer: str,
        *,
        window: Window | None = None,
        coefficient: float | None = None,
        allow_other_base: bool = False,
    ) -> float:
        """Log-probability (nats) of an answer as the whole reply, its end of turn included.

        Layers, positions and coefficient are as for `ask`.
        """
        (evidence,) = self._evidence([acts], allow_other_base, base=False, window=window)
        row = self._row(question, evidence, evidence.vectors, answer)
        return self._runner_with(coefficient).log_probs([row], MAX_BATCH)[0]

    def next_token_logits(
        self,
        question: str,
        acts: Activations,
        *,
        window: Window | None = None,
        coefficient: float | None = None,
        allow_other_base: bool = False,
    ) -> Float[Tensor, " v"]:
        """Logits of the answer's first token, float32 on the CPU.

        Layers, positions and coefficient are as for `ask`.
        """
        (evidence,) = self._evidence([acts], allow_other_base, base=False, window=window)
        row = self._row(question, evidence, evidence.vectors)
        return self._runner_with(coefficient).prefill([row], keep=1)[0, -1].float().cpu()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Saves adapter, contract, transform and tokenizer, whole or not at all.

        Raises:
            ContractError: The oracle has no adapter to save.
            FileExistsError: The folder holds something else than an oracle.
        """
        return save_checkpoint(self, folder)

    # What is asked about

    def _evidence(
        self,
        many: Sequence[Activations],
        allow_other_base: bool,
        *,
        base: bool,
        every_layer: bool = False,
        window: Window | None = "all",
    ) -> list[Evidence]:
        return gather_evidence(
            many,
            model=self.model,
            contract=self.contract,
            transform=self.transform,
            allow_other_base=allow_other_base,
            base=base,
            every_layer=every_layer,
            window=window,
        )

    # Prompts

    def _row(
        self,
        question: str,
        evidence: Evidence,
        vectors: Float[Tensor, "l p d"] | None,
        answer: str | None = None,
        known: dict[tuple[Any, ...], OraclePrompt] | None = None,
    ) -> Row:
        """A prompt about `vectors`; None leaves the placeholders out."""
        count = 0 if vectors is None else len(evidence.places)
        key = (question, evidence.layers, count, answer)
        known = {} if known is None else known
        if key not in known:
            known[key] = render_prompt(
                self.tokenizer,
                self.contract,
                question,
                layers=evidence.layers,
                num_positions=count,
                answer=answer,
            )
        flat = evidence.vectors[:0] if vectors is None else vectors
        return Row(
            known[key],
            flat.reshape(-1, self.model.d_model),
            # Nothing says where in the target an absent span would be.
            0 if vectors is None else span_shift(self.contract, evidence.positions),
        )

    def _rows(
        self,
        question: str,
        evidence: Evidence,
        names: Sequence[ControlName],
        seed: int,
        known: dict[tuple[Any, ...], OraclePrompt],
    ) -> dict[str, Row]:
        """The question's row under "answer", and those of the controls that apply."""
        vectors: dict[str, Tensor | None] = {"answer": evidence.vectors}
        for name in names:
            if name == "no_activation":
                vectors[name] = None
            elif name == "zero":
                vectors[name] = torch.zeros_like(evidence.vectors)
            elif name == "random":
                vectors[name] = random_vectors(evidence.vectors, seed=seed)
            elif name == "shuffled" and len(evidence.places) > 1:
                vectors[name] = shuffled_vectors(evidence.vectors, seed=seed)
            elif name == "base" and evidence.base is not None:
                vectors[name] = evidence.base
        return {
            name: self._row(question, evidence, value, known=known)
            for name, value in vectors.items()
        }

    # Running

    def _runner_with(self, coefficient: float | None) -> OracleRunner:
        wanted = self.contract.recommended.coefficient if coefficient is None else coefficient
        if wanted is None or wanted == self.contract.coefficient:
            return self._runner
        contract = dataclasses.replace(self.contract, coefficient=wanted)
        return dataclasses.replace(self._runner, contract=contract)

    def _sampling(self, do_sample: bool | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `generate`, with what is recommended where the caller states nothing."""
        chosen = dict(options)
        temperature = chosen.get("temperature")
        if temperature is None and do_sample is not False:
            temperature = self.contract.recommended.temperature
        if do_sample is None:
            do_sample = bool(temperature)
        if do_sample and temperature:
            chosen["temperature"] = temperature
        elif not do_sample and not temperature:
            chosen.pop("temperature", None)  # 0 is greedy, which `generate` refuses as a number
        return {**chosen, "do_sample": do_sample}

    def _answers(
        self,
        asked: Sequence[tuple[str, Evidence]],
        names: Sequence[ControlName],
        *,
        coefficient: float | None,
        do_sample: bool | None,
        seed: int,
        max_batch: int,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> list[Answer | None]:
        """Answers in the order asked; None for what a cancellation left out."""
        refuse_options(options)
        options = self._sampling(do_sample, options)
        runner = self._runner_with(coefficient)
        known: dict[tuple[Any, ...], OraclePrompt] = {}
        index_of: dict[Any, int] = {}
        unique: list[Row] = []
        plans: list[dict[str, int]] = []
        for question, evidence in asked:
            plan = {}
            for name, row in self._rows(question, evidence, names, seed, known).items():
                # Rows that are alike run once, but are sampled each for itself.
                key = (len(unique), name) if options["do_sample"] else row.key
                if key not in index_of:
                    index_of[key] = len(unique)
                    unique.append(row)
                plan[name] = index_of[key]
            plans.append(plan)
        runner.check_length(unique, options["max_new_tokens"])
        generated = runner.generate_all(unique, max_batch, stop, options)
        provenance = self._provenance() | {
            "coefficient": runner.contract.coefficient,
            "do_sample": options["do_sample"],
            "temperature": options.get("temperature"),
        }
        answers: list[Answer | None] = []
        for (question, evidence), plan in zip(asked, plans, strict=True):
            if not all(index in generated for index in plan.values()):
                answers.append(None)
                continue
            said = {name: generated[index] for name, index in plan.items()}
            answer = said.pop("answer")
            answers.append(
                Answer(
                    question=question,
                    text=answer.text,
                    controls={name: control.text for name, control in said.items()},
                    log_prob=answer.log_prob,
                    num_tokens=answer.num_tokens,
                    layers=evidence.layers,
                    positions=evidence.positions,
                    tokens=evidence.tokens,
                    provenance={
                        "activations": dataclasses.asdict(evidence.acts.provenance),
                        "oracle": provenance,
                    },
                )
            )
        return answers

    def _provenance(self) -> dict[str, Any]:
        adapter = self.adapter
        return {
            "model": self.model.name,
            "base_digest": self.model.base_digest,
            "adapter": adapter,
            "adapter_digest": None if adapter is None else self.model.adapter_digest(adapter),
            "contract_digest": self.contract.digest,
        }

    def _check_wiring(self) -> Check:
        layer = self.contract.read_layers[0]
        layers = (layer,)
        ids = self.model.encode("The capital of France is").token_ids
        acts = self.model.activations(list(ids), layers=layer, positions=[-1])
        vectors = transformed(acts, layers, acts.vectors, self.transform)
        evidence = Evidence(acts, layers, (0,), vectors)
        rows = [
            self._row("What is this?", evidence, vectors),
            self._row("What is this?", evidence, torch.zeros_like(vectors)),
        ]
        logits = self._runner.prefill(rows, keep=1)[:, -1]
        return check_wiring(logits[0], logits[1])


def _broadcast(
    question: str | Sequence[str], acts: Activations | Sequence[Activations]
) -> tuple[list[tuple[str, Activations]], bool]:
    one_question, one_acts = isinstance(question, str), isinstance(acts, Activations)
    questions = [question] if isinstance(question, str) else list(question)
    many = [acts] if isinstance(acts, Activations) else list(acts)
    if not questions or not many:
        raise QuestionError("There is nothing to ask: a list of questions or activations is empty.")
    if one_question:
        questions *= len(many)
    if one_acts:
        many *= len(questions)
    if len(questions) != len(many):
        raise QuestionError(
            f"{len(questions)} questions and {len(many)} activations cannot be paired; give two "
            "lists of one length, or one question, or one Activations."
        )
    return list(zip(questions, many, strict=True)), one_question and one_acts
