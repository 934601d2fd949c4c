"""Asking an oracle about activations."""

import dataclasses
import itertools
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import (
    ContractError,
    GenerationError,
    ModelNotFoundError,
    PositionError,
    QuestionError,
)
from aotoolkit.oracle.answer import Answer, AnswerGrid, Choice
from aotoolkit.oracle.batch import Row, span_shift
from aotoolkit.oracle.checkpoint import checkpoint_folder, checkpoint_tokenizer, save_checkpoint
from aotoolkit.oracle.confidence import (
    AnswerConfidenceKind,
    Calibration,
    Confidence,
    agreement,
    forced_choice,
    log_probability,
    mode_frequency,
)
from aotoolkit.oracle.contract import OracleContract, Recommended, Window
from aotoolkit.oracle.controls import (
    ControlName,
    random_vectors,
    resolve_controls,
    shuffled_vectors,
)
from aotoolkit.oracle.evidence import Evidence, gather_evidence, transformed
from aotoolkit.oracle.generation import Generated, refuse_options
from aotoolkit.oracle.importers import find_contract
from aotoolkit.oracle.prompt import OraclePrompt, render_prompt
from aotoolkit.oracle.running import MAX_BATCH, OracleRunner
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.oracle.verification import (
    Check,
    check_adapter,
    check_contract,
    check_wiring,
    loaded_adapter,
    require,
)
from aotoolkit.tracing import Activations, TracedModel

# What an answer does not depend on, or what its settings state otherwise.
_NOT_SETTINGS = frozenset({"coefficient", "seed", "max_batch", "max_new_tokens"})


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
        allow_other_base: bool = False,
    ) -> Self:
        """Loads an oracle and verifies that it fits its contract.

        Args:
            path_or_id: A folder with a PEFT adapter, or a Hub id; "aotoolkit/nano" is the oracle
                that ships with the package, "aotoolkit/nano-latentqa" its LatentQA decoder.
            model: The base, already loaded; the adapter goes into it under a free name, or is
                found there where the same folder was loaded before. By default the contract's
                base is loaded.
            contract: Where the checkpoint has none of its own, or a wrong one.
            revision: Of the Hub repository.
            allow_other_base: Accepts a base with another digest than the contract's, such as the
                same checkpoint quantised; everything else is verified.

        Raises:
            ModelNotFoundError: There is no such folder or repository, or the contract's base could
                not be loaded.
            ContractError: The checkpoint does not describe itself and no contract was given.
            AdapterLoadError: There are no weights, or they do not fit the base.
            VerificationError: A check failed; the message names field, found and expected.
        """
        folder = checkpoint_folder(path_or_id, revision)
        contract = contract or find_contract(folder)
        if model is None:
            try:
                model = TracedModel.from_pretrained(
                    contract.base_model, revision=contract.base_revision
                )
            except ModelNotFoundError as error:
                raise ModelNotFoundError(
                    f"The base {contract.base_model!r} that {path_or_id} names could not be "
                    f"loaded: {error} Load it yourself and pass it as model=."
                ) from error
        tokenizer = checkpoint_tokenizer(folder, model)
        transform = VectorTransform.load(folder)
        checks = check_contract(
            contract, model, tokenizer, transform, allow_other_base=allow_other_base
        )
        require(checks, str(path_or_id))
        adapter = loaded_adapter(model, folder)
        is_new = adapter is None
        if adapter is None:
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
            if is_new:
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
        confidence: AnswerConfidenceKind | None = None,
        num_samples: int = 20,
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
        `ask_each`); and, where the layers asked about are the recommended ones, the last positions
        of a whole prompt, coefficient and temperature. Where the contract puts several layers in a
        prompt, all that the activations hold are asked about. `Answer.layers`, `.positions` and
        `.provenance` say what was used.

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
            confidence: How sure the answer is, as `Answer.confidence`: `log_probability` (costs
                nothing), `mode_frequency` (the answer is then the most frequent of `num_samples`
                sampled ones, at the `temperature` given, recommended or else 1; controls are
                greedy) or `agreement` (asks about each position alone). Where the candidates
                are known, `choose` is better.
            num_samples: Samples for `mode_frequency`.
            do_sample: Samples, with torch's global generator; greedy otherwise. By default it
                samples where a `temperature` above 0 is given here or recommended.
            seed: For the random and the shuffled control, of which each read (prompt, adapter,
                layers, positions) has its own.
            max_batch: Most prompts in one batch; long ones are fewer, by memory.
            allow_other_base: Accepts activations of another base of the same width.
            **options: For transformers' `generate`, such as `temperature`. Nothing is taken from
                the model's own generation config, but for the tokens that end an answer; sampling
                is from all tokens unless `top_k` or `top_p` is stated.

        Returns:
            An answer, or a list of them where a list was given.

        Raises:
            QuestionError: A question is empty or holds a control token.
            LayerError: There are several layers and no rule to choose one.
            PositionError: `window` is none, or there is one position and `agreement` needs two.
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
        options |= {
            "coefficient": coefficient,
            "seed": seed,
            "max_batch": max_batch,
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
        }
        if confidence is not None:
            self._check_confidence(confidence, asked, num_samples, options)
        # A mode is compared with what the controls say most probably, not with draws.
        greedy = {"do_sample": False, "temperature": None} if confidence == "mode_frequency" else {}
        answers = self._answers(asked, names, **(options | greedy))
        done = [answer for answer in answers if answer is not None]
        if confidence == "log_probability":
            done = [
                self._with_log_probability(e, answer, options)
                for (_, e), answer in zip(asked, done, strict=True)
            ]
        elif confidence == "mode_frequency":
            done = self._with_mode_frequency(asked, done, num_samples, options)
        elif confidence == "agreement":
            done = self._with_agreement(asked, done, options)
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
        on_answer: Callable[[Answer], object] | None = None,
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
            on_answer: Called with each cell as it is done, a batch at a time: a small `max_batch`
                brings the first cells sooner. `answer.layers` and `answer.positions` say which cell
                it is. No progress bar is shown then.
            **options: For transformers' `generate`.

        Raises:
            AOToolkitError: As `ask`: QuestionError, ContractError, IncompatibleActivationsError,
                NonFiniteError, ContextLengthError, GenerationError.

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
            on_answer=on_answer,
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
    ) -> Generator[str]:
        """The answer in pieces of text, as they come; without controls, otherwise as `ask`.

        Generation runs on a thread of its own, which holds the model's lock until the answer ends:
        do not iterate inside `with model.using(...)`. Closing the iterator stops generation.

        Raises:
            AOToolkitError: As `ask`, at once.
        """
        refuse_options(options)
        (evidence,) = self._evidence([acts], allow_other_base, base=False, window=window)
        row = self._row(question, evidence, evidence.vectors)
        recommended = self._recommended(evidence)
        runner = self._runner_with(coefficient, recommended)
        runner.check_length([row], max_new_tokens)
        options = self._sampling(do_sample, options, recommended)
        return runner.stream(row, {"max_new_tokens": max_new_tokens, **options})

    @overload
    def choose(
        self,
        question: str,
        acts: Activations,
        choices: Sequence[str],
        *,
        window: Window | None = ...,
        coefficient: float | None = ...,
        controls: bool | Sequence[ControlName] = ...,
        seed: int = ...,
        max_batch: int = ...,
        allow_other_base: bool = ...,
    ) -> Choice: ...

    @overload
    def choose(
        self,
        question: list[str] | tuple[str, ...],
        acts: Activations | Sequence[Activations],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        window: Window | None = ...,
        coefficient: float | None = ...,
        controls: bool | Sequence[ControlName] = ...,
        seed: int = ...,
        max_batch: int = ...,
        allow_other_base: bool = ...,
    ) -> list[Choice]: ...

    @overload
    def choose(
        self,
        question: str,
        acts: Sequence[Activations],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        window: Window | None = ...,
        coefficient: float | None = ...,
        controls: bool | Sequence[ControlName] = ...,
        seed: int = ...,
        max_batch: int = ...,
        allow_other_base: bool = ...,
    ) -> list[Choice]: ...

    def choose(
        self,
        question: str | list[str] | tuple[str, ...],
        acts: Activations | Sequence[Activations],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        window: Window | None = None,
        coefficient: float | None = None,
        controls: bool | Sequence[ControlName] = False,
        seed: int = 0,
        max_batch: int = MAX_BATCH,
        allow_other_base: bool = False,
    ) -> Choice | list[Choice]:
        """Forced choice: the softmax over candidates of their log-probabilities as whole replies.

        Better calibrated than free text where the candidates are known (arXiv:2605.26045). Layers,
        positions and coefficient are as for `ask`.

        Args:
            question: A question, or a list of them.
            acts: Activations, or a list of them. Two lists are asked pair by pair, in batches.
            choices: Candidate answers, for all; or, for a list, those of each question.
            window: As `ask`.
            coefficient: As `ask`.
            controls: As `ask`; none by default. With `["base"]`, `Choice.controls["base"]` is the
                choice by the same tokens read from the base.
            seed: As `ask`.
            max_batch: Most prompts (candidates) in one batch.
            allow_other_base: As `ask`.

        Returns:
            A choice, or a list of them where a list was given.

        Raises:
            GenerationError: Fewer than two candidates, one twice, or lists of them that are not one
                for each question.
            QuestionError: The question or a candidate is empty or holds a control token.
        """
        pairs, single = _broadcast(question, acts)
        candidates = _candidates(choices, len(pairs))
        names = resolve_controls(controls)
        evidence = self._evidence(
            [a for _, a in pairs], allow_other_base, base="base" in names, window=window
        )
        asked = [(q, e) for (q, _), e in zip(pairs, evidence, strict=True)]
        done: dict[int, Choice] = {}
        for recommended, indices in self._alike(asked):
            chosen = self._choices(
                [asked[index] for index in indices],
                [candidates[index] for index in indices],
                names,
                runner=self._runner_with(coefficient, recommended),
                seed=seed,
                max_batch=max_batch,
            )
            done |= zip(indices, chosen, strict=True)
        return done[0] if single else [done[index] for index in range(len(asked))]

    def _choices(
        self,
        asked: Sequence[tuple[str, Evidence]],
        candidates: Sequence[tuple[str, ...]],
        names: Sequence[ControlName],
        *,
        runner: OracleRunner,
        seed: int,
        max_batch: int,
    ) -> list[Choice]:
        """Choices among the candidates of each question."""
        known: dict[tuple[Any, ...], OraclePrompt] = {}
        index_of: dict[Any, int] = {}
        unique: list[Row] = []
        plans: list[dict[str, list[int]]] = []
        for (question, about), own in zip(asked, candidates, strict=True):
            plan: dict[str, list[int]] = {}
            for candidate in own:
                rows = self._rows(question, about, names, seed, known, candidate)
                for name, row in rows.items():
                    if row.key not in index_of:
                        index_of[row.key] = len(unique)
                        unique.append(row)
                    plan.setdefault(name, []).append(index_of[row.key])
            plans.append(plan)
        log_probs = runner.log_probs(unique, max_batch)
        done = []
        for (question, about), own, plan in zip(asked, candidates, plans, strict=True):
            settings = _settings(about, runner.contract.coefficient, {})
            made = {
                name: self._choice(question, own, [log_probs[index] for index in indices], settings)
                for name, indices in plan.items()
            }
            answer = made.pop("answer")
            done.append(dataclasses.replace(answer, controls=made))
        return done

    def _choice(
        self,
        question: str,
        candidates: Sequence[str],
        log_probs: Sequence[float],
        settings: Mapping[str, Any],
    ) -> Choice:
        probabilities = torch.tensor(log_probs, dtype=torch.float64).softmax(0).tolist()
        return Choice(
            question=question,
            log_probs=dict(zip(candidates, log_probs, strict=True)),
            probabilities=dict(zip(candidates, probabilities, strict=True)),
            confidence=self.contract.calibrated(forced_choice(log_probs, settings=settings)),
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
        runner = self._runner_with(coefficient, self._recommended(evidence))
        return runner.log_probs([row], MAX_BATCH)[0]

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
        runner = self._runner_with(coefficient, self._recommended(evidence))
        return runner.prefill([row], keep=1)[0, -1].float().cpu()

    def with_calibration(self, calibration: Calibration) -> Self:
        """The same oracle with a calibration in its contract, which `save_pretrained` stores."""
        return type(self)(
            self.model,
            self.adapter,
            self.contract.with_calibration(calibration),
            transform=self.transform,
            tokenizer=self.tokenizer,
            verified=self.verified,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Saves adapter, contract, transform and tokenizer, whole or not at all.

        Raises:
            ContractError: The oracle has no adapter to save.
            FileExistsError: The folder holds something else than an oracle.
        """
        return save_checkpoint(self, folder)

    def unload(self) -> None:
        """Takes the oracle's adapter out of the model, which frees its memory.

        The oracle, and every other one loaded from the same folder into this model, cannot be asked
        any more.

        Raises:
            ContractError: The oracle asks the base itself, so there is nothing to take out.
            UnknownAdapterError: It is out already.
        """
        if self.adapter is None:
            raise ContractError(
                "This oracle asks the base itself, so there is no adapter to unload."
            )
        self.model.delete_adapter(self.adapter)

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
        answer: str | None = None,
    ) -> dict[str, Row]:
        """The question's row under "answer", and those of the controls that apply.

        With an `answer` the rows hold it, to be scored.
        """
        vectors: dict[str, Tensor | None] = {"answer": evidence.vectors}
        seed = evidence.seed(seed)
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
            name: self._row(question, evidence, value, answer, known=known)
            for name, value in vectors.items()
        }

    # Running

    def _recommended(self, evidence: Evidence) -> Recommended:
        return self.contract.recommended.for_layers(evidence.layers)

    def _alike(
        self, asked: Sequence[tuple[str, Evidence]]
    ) -> Iterator[tuple[Recommended, list[int]]]:
        """Indices of what can run together, since the same is recommended for how it runs."""
        groups: dict[tuple[float | None, float | None], list[int]] = {}
        for index, (_, evidence) in enumerate(asked):
            recommended = self._recommended(evidence)
            groups.setdefault((recommended.coefficient, recommended.temperature), []).append(index)
        for indices in groups.values():
            yield self._recommended(asked[indices[0]][1]), indices

    def _runner_with(self, coefficient: float | None, recommended: Recommended) -> OracleRunner:
        wanted = recommended.coefficient if coefficient is None else coefficient
        if wanted is None or wanted == self.contract.coefficient:
            return self._runner
        contract = dataclasses.replace(self.contract, coefficient=wanted)
        return dataclasses.replace(self._runner, contract=contract)

    def _sampling(
        self, do_sample: bool | None, options: Mapping[str, Any], recommended: Recommended
    ) -> dict[str, Any]:
        """Options of `generate`, with what is recommended where the caller states nothing."""
        chosen = dict(options)
        temperature = chosen.get("temperature")
        if temperature is not None and not (temperature >= 0 and math.isfinite(temperature)):
            raise GenerationError(f"temperature is {temperature}; give a finite number from 0 on.")
        if do_sample and temperature == 0:
            raise GenerationError(
                "temperature is 0, which is greedy, and do_sample is True. Leave one of them out."
            )
        if temperature is None and do_sample is not False:
            temperature = recommended.temperature
        if do_sample or (do_sample is None and temperature):
            # transformers samples from 50 tokens where nothing is said of them.
            everything = {"top_k": 0, "top_p": 1.0}
            return {**everything, **chosen, "temperature": temperature or 1.0, "do_sample": True}
        if not temperature:
            chosen.pop("temperature", None)  # 0 is greedy, which `generate` refuses as a number
        return {**chosen, "do_sample": False}

    def _answers(
        self,
        asked: Sequence[tuple[str, Evidence]],
        names: Sequence[ControlName],
        *,
        coefficient: float | None,
        do_sample: bool | None,
        stop: threading.Event | None = None,
        on_answer: Callable[[Answer], object] | None = None,
        seed: int,
        max_batch: int,
        **options: Any,
    ) -> list[Answer | None]:
        """Answers in the order asked; None for what a cancellation left out."""
        refuse_options(options)
        answers: list[Answer | None] = [None] * len(asked)
        for recommended, indices in self._alike(asked):
            done = self._answers_alike(
                [asked[index] for index in indices],
                names,
                runner=self._runner_with(coefficient, recommended),
                options=self._sampling(do_sample, options, recommended),
                stop=stop,
                on_answer=on_answer,
                seed=seed,
                max_batch=max_batch,
            )
            for index, answer in zip(indices, done, strict=True):
                answers[index] = answer
            if None in done:
                break
        return answers

    def _answers_alike(
        self,
        asked: Sequence[tuple[str, Evidence]],
        names: Sequence[ControlName],
        *,
        runner: OracleRunner,
        options: Mapping[str, Any],
        stop: threading.Event | None,
        on_answer: Callable[[Answer], object] | None,
        seed: int,
        max_batch: int,
    ) -> list[Answer | None]:
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
        provenance = self._provenance() | {
            "coefficient": runner.contract.coefficient,
            "do_sample": options["do_sample"],
            "temperature": options.get("temperature"),
            "top_k": options.get("top_k"),
            "top_p": options.get("top_p"),
        }
        answers: list[Answer | None] = [None] * len(asked)

        def collect(generated: Mapping[int, Generated]) -> None:
            """Makes the answers that are whole now, their controls included."""
            for index, ((question, evidence), plan) in enumerate(zip(asked, plans, strict=True)):
                if answers[index] is not None or not generated.keys() >= set(plan.values()):
                    continue
                said = {name: generated[row] for name, row in plan.items()}
                answer = said.pop("answer")
                made = Answer(
                    question=question,
                    text=answer.text,
                    controls={name: control.text for name, control in said.items()},
                    log_prob=answer.log_prob,
                    num_tokens=answer.num_tokens,
                    layers=evidence.layers,
                    positions=evidence.positions,
                    tokens=evidence.tokens,
                    sampled=options["do_sample"],
                    provenance={
                        "activations": dataclasses.asdict(evidence.acts.provenance),
                        "oracle": provenance,
                    },
                )
                answers[index] = made
                if on_answer is not None:
                    on_answer(made)

        if on_answer is None:
            collect(runner.generate_all(unique, max_batch, stop, options))
        else:
            runner.generate_all(unique, max_batch, stop, options, on_batch=collect)
        return answers

    # Confidence

    def _check_confidence(
        self,
        kind: str,
        asked: Sequence[tuple[str, Evidence]],
        num_samples: int,
        options: Mapping[str, Any],
    ) -> None:
        if kind not in get_args(AnswerConfidenceKind):
            allowed = ", ".join(get_args(AnswerConfidenceKind))
            raise GenerationError(
                f"confidence is {kind!r}; give one of {allowed}, or None. A forced choice is "
                "Oracle.choose."
            )
        do_sample, temperature = options["do_sample"], options.get("temperature")
        if kind == "mode_frequency" and (num_samples < 2 or do_sample is False or temperature == 0):
            raise GenerationError(
                f"mode_frequency needs two or more sampled answers; num_samples is {num_samples}, "
                f"do_sample {do_sample} and temperature {temperature}. Leave do_sample out, and a "
                "temperature of 0."
            )
        if kind == "agreement" and any(len(evidence.places) < 2 for _, evidence in asked):
            raise PositionError(
                "Agreement across positions needs two or more of them; read more positions, or ask "
                "for another confidence."
            )

    def _with_confidence(self, answer: Answer, confidence: Confidence) -> Answer:
        return dataclasses.replace(answer, confidence=self.contract.calibrated(confidence))

    def _answer_settings(
        self, evidence: Evidence, answer: Answer, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        used = answer.provenance["oracle"]
        how = {name: value for name, value in options.items() if name not in _NOT_SETTINGS}
        how |= {name: used[name] for name in ("do_sample", "temperature", "top_k", "top_p")}
        return _settings(evidence, used["coefficient"], how)

    def _with_log_probability(
        self, evidence: Evidence, answer: Answer, options: Mapping[str, Any]
    ) -> Answer:
        settings = self._answer_settings(evidence, answer, options)
        confidence = log_probability(answer.log_prob, answer.num_tokens, settings=settings)
        return self._with_confidence(answer, confidence)

    def _with_mode_frequency(
        self,
        asked: Sequence[tuple[str, Evidence]],
        answers: Sequence[Answer],
        num_samples: int,
        options: Mapping[str, Any],
    ) -> list[Answer]:
        sampling = {**options, "do_sample": True}
        repeated = [pair for pair in asked for _ in range(num_samples)]
        sampled = [one for one in self._answers(repeated, (), **sampling) if one is not None]
        done = []
        for number, ((_, evidence), answer) in enumerate(zip(asked, answers, strict=True)):
            own = sampled[number * num_samples : (number + 1) * num_samples]
            settings = self._answer_settings(evidence, own[0], sampling)
            settings["num_samples"] = num_samples
            mode, confidence = mode_frequency([one.text for one in own], settings=settings)
            chosen = dataclasses.replace(own[mode], controls=answer.controls, sampled=False)
            done.append(self._with_confidence(chosen, confidence))
        return done

    def _with_agreement(
        self,
        asked: Sequence[tuple[str, Evidence]],
        answers: Sequence[Answer],
        options: Mapping[str, Any],
    ) -> list[Answer]:
        alone = [
            (question, part) for question, evidence in asked for part in evidence.by_position()
        ]
        said = iter([one for one in self._answers(alone, (), **options) if one is not None])
        done = []
        for (_, evidence), answer in zip(asked, answers, strict=True):
            texts = [one.text for one in itertools.islice(said, len(evidence.places))]
            settings = self._answer_settings(evidence, answer, options)
            done.append(
                self._with_confidence(answer, agreement(answer.text, texts, settings=settings))
            )
        return done

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


def _settings(evidence: Evidence, coefficient: float, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a confidence depends on, as the JSON of a contract can hold it."""
    stated = {
        name: value
        for name, value in options.items()
        if isinstance(value, bool | int | float | str)
    }
    read = {"layers": list(evidence.layers), "positions": evidence.span}
    return {**read, "coefficient": coefficient, **stated}


def _candidates(
    choices: Sequence[str] | Sequence[Sequence[str]], count: int
) -> list[tuple[str, ...]]:
    """The candidates of each of `count` questions."""
    for_all = isinstance(choices, str) or all(isinstance(choice, str) for choice in choices)
    lists: list[Any] = [choices] * count if for_all else list(choices)
    if len(lists) != count:
        raise GenerationError(
            f"There are {len(lists)} lists of choices for {count} questions; give one list for "
            "all, or one for each."
        )
    for own in lists:
        if isinstance(own, str) or len(own) < 2 or len(set(own)) < len(own):
            raise GenerationError(f"choices is {own!r}; give two or more different answers.")
        if not all(choice.strip() for choice in own):
            raise QuestionError(f"choices is {own!r}, and one of them is empty; write answers.")
    return [tuple(own) for own in lists]


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
