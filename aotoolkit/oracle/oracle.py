"""Asking an oracle about activations."""

import contextlib
import dataclasses
import inspect
import itertools
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
)

from aotoolkit.errors import (
    ContextLengthError,
    ContractError,
    GenerationError,
    IncompatibleActivationsError,
    LayerError,
    NonFiniteError,
    QuestionError,
    UntrainedLayerWarning,
)
from aotoolkit.oracle.answer import Answer, AnswerGrid, Choice
from aotoolkit.oracle.batch import Batch, Row, collate, span_shift
from aotoolkit.oracle.checkpoint import checkpoint_folder, save_checkpoint
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.controls import (
    ControlName,
    random_vectors,
    resolve_controls,
    shuffled_vectors,
)
from aotoolkit.oracle.generation import ChosenLogProbs, Generated, Stopped, end_ids, refuse_options
from aotoolkit.oracle.importers import find_contract
from aotoolkit.oracle.injection import injecting
from aotoolkit.oracle.prompt import OraclePrompt, render_prompt
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.oracle.verification import (
    Check,
    check_adapter,
    check_contract,
    check_wiring,
    require,
)
from aotoolkit.tracing import Activations, TracedModel

MAX_BATCH = 128
_SECONDS_BEFORE_PROGRESS = 2.0
_READ_BATCH = 16


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What one prompt is asked about.

    Attributes:
        acts: The activations it was taken from.
        layers: The blocks of `vectors`.
        places: Indices of its positions in `acts`.
        vectors: [l p d], transformed, float32 on the CPU.
        base: The same read from the base model; None where that is no control.
    """

    acts: Activations
    layers: tuple[int, ...]
    places: tuple[int, ...]
    vectors: Float[Tensor, "l p d"]
    base: Float[Tensor, "l p d"] | None = None

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(self.acts.positions[place] for place in self.places)

    def cells(self) -> Iterator["_Evidence"]:
        """Each layer and token alone."""
        for row, layer in enumerate(self.layers):
            for col, place in enumerate(self.places):
                yield _Evidence(
                    self.acts,
                    (layer,),
                    (place,),
                    self.vectors[row : row + 1, col : col + 1],
                    None if self.base is None else self.base[row : row + 1, col : col + 1],
                )


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
        saved = (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder) if saved else model.tokenizer
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
        max_new_tokens: int = 64,
        controls: bool | Sequence[ControlName] = True,
        do_sample: bool = False,
        seed: int = 0,
        max_batch: int = MAX_BATCH,
        allow_other_base: bool = False,
        **options: Any,
    ) -> Answer | list[Answer]:
        """Asks a question about activations, and the same without the evidence, in one batch.

        Where the contract puts one layer in a prompt and the activations hold several, the
        contract's `extra["recommended_layer"]` is asked if it is among them; `Answer.layers` says
        so. Without one, choose: `acts.layer(18)`, or `ask_each`.

        Args:
            question: A question, or a list of them.
            acts: Activations, or a list of them. Two lists are asked pair by pair.
            max_new_tokens: Longest answer.
            controls: True for all that apply, False for none, or their names: `no_activation`
                (no placeholders), `zero`, `random` (directions, norms kept), `shuffled`
                (positions; from two on) and `base` (the same tokens read from the base, where an
                adapter was read).
            do_sample: Samples, with torch's global generator; greedy otherwise.
            seed: For the random and the shuffled control.
            max_batch: Most prompts in one batch.
            allow_other_base: Accepts activations of another base of the same width.
            **options: For transformers' `generate`, such as `temperature`.

        Returns:
            An answer, or a list of them where a list was given.

        Raises:
            QuestionError: A question is empty or holds a control token.
            LayerError: There are several layers and no rule to choose one.
            IncompatibleActivationsError: The activations are of another base or width.
            NonFiniteError: They hold NaN or Inf.
            ContextLengthError: Prompt and answer are longer than the context.
            GenerationError: An option would inject in wrong places.

        Warns:
            UntrainedLayerWarning: The oracle was not trained on the layer.
        """
        pairs, single = _broadcast(question, acts)
        names = resolve_controls(controls)
        evidence = self._evidence([a for _, a in pairs], allow_other_base, base="base" in names)
        asked = [(q, e) for (q, _), e in zip(pairs, evidence, strict=True)]
        answers = self._answers(
            asked,
            names,
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
        max_new_tokens: int = 64,
        controls: bool | Sequence[ControlName] = ("no_activation", "zero"),
        do_sample: bool = False,
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
            QuestionError, IncompatibleActivationsError, NonFiniteError, ContextLengthError,
            GenerationError: As `ask`.

        Warns:
            UntrainedLayerWarning: The oracle was not trained on a layer.
        """
        names = resolve_controls(controls)
        (whole,) = self._evidence([acts], allow_other_base, base="base" in names, every_layer=True)
        cells = list(whole.cells())
        answers = self._answers(
            [(question, cell) for cell in cells],
            names,
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
        max_new_tokens: int = 64,
        do_sample: bool = False,
        allow_other_base: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """The answer in pieces of text, as they come; without controls.

        Generation runs on a thread of its own, which holds the model's lock until the answer ends:
        do not iterate inside `with model.using(...)`. Closing the iterator stops generation.

        Raises:
            The errors of `ask`, at once.
        """
        refuse_options(options)
        (evidence,) = self._evidence([acts], allow_other_base, base=False)
        row = self._row(question, evidence, evidence.vectors)
        self._check_length([row], max_new_tokens)
        return self._stream(
            row, {"max_new_tokens": max_new_tokens, "do_sample": do_sample, **options}
        )

    def choose(
        self,
        question: str,
        acts: Activations,
        choices: Sequence[str],
        *,
        max_batch: int = MAX_BATCH,
        allow_other_base: bool = False,
    ) -> Choice:
        """Forced choice: the softmax over candidates of their log-probabilities as whole replies.

        Better calibrated than free text where the candidates are known (arXiv:2605.26045).

        Raises:
            GenerationError: Fewer than two candidates, or one twice.
            QuestionError: The question or a candidate is empty or holds a control token.
        """
        if isinstance(choices, str) or len(choices) < 2 or len(set(choices)) < len(choices):
            raise GenerationError(f"choices is {choices!r}; give two or more different answers.")
        (evidence,) = self._evidence([acts], allow_other_base, base=False)
        rows = [self._row(question, evidence, evidence.vectors, choice) for choice in choices]
        log_probs = self._log_probs(rows, max_batch)
        probabilities = torch.tensor(log_probs, dtype=torch.float64).softmax(0).tolist()
        return Choice(
            question=question,
            log_probs=dict(zip(choices, log_probs, strict=True)),
            probabilities=dict(zip(choices, probabilities, strict=True)),
        )

    def score(
        self, question: str, acts: Activations, answer: str, *, allow_other_base: bool = False
    ) -> float:
        """Log-probability (nats) of an answer as the whole reply, its end of turn included."""
        (evidence,) = self._evidence([acts], allow_other_base, base=False)
        row = self._row(question, evidence, evidence.vectors, answer)
        return self._log_probs([row], MAX_BATCH)[0]

    def next_token_logits(
        self, question: str, acts: Activations, *, allow_other_base: bool = False
    ) -> Float[Tensor, " v"]:
        """Logits of the answer's first token, float32 on the CPU."""
        (evidence,) = self._evidence([acts], allow_other_base, base=False)
        row = self._row(question, evidence, evidence.vectors)
        return self._prefill([row], keep=1)[0, -1].float().cpu()

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
    ) -> list[_Evidence]:
        """Checks activations, chooses their layers, transforms them; each object once."""
        made: dict[int, _Evidence] = {}
        for acts in many:
            if id(acts) in made:
                continue
            self._check_activations(acts, allow_other_base)
            layers = acts.layers if every_layer else self._layers_to_ask(acts)
            chosen = [acts.layers.index(layer) for layer in layers]
            made[id(acts)] = _Evidence(
                acts,
                layers,
                tuple(range(len(acts))),
                self._transformed(acts, layers, acts.vectors[chosen]),
            )
        self._warn_untrained({layer for e in made.values() for layer in e.layers})
        if base:
            made |= self._with_base(made)
        return [made[id(acts)] for acts in many]

    def _check_activations(self, acts: Activations, allow_other_base: bool) -> None:
        if not isinstance(acts, Activations):
            raise TypeError(
                f"acts is a {type(acts).__name__}; give the Activations that "
                "TracedModel.activations returns."
            )
        if acts.d_model != self.model.d_model:
            raise IncompatibleActivationsError(
                f"The activations have width {acts.d_model}, the oracle's base "
                f"{self.model.name!r} has {self.model.d_model}; an oracle reads activations of its "
                "own base only."
            )
        theirs = acts.provenance.base_digest
        if theirs != self.model.base_digest and not allow_other_base:
            raise IncompatibleActivationsError(
                f"The activations are of {acts.provenance.model!r} (base {theirs[:12]}), the "
                f"oracle's base is {self.model.name!r} ({self.model.base_digest[:12]}). Read them "
                "from the oracle's base, or pass allow_other_base=True if you mean it."
            )
        if not bool(torch.isfinite(acts.vectors).all()):
            raise NonFiniteError(
                "The activations hold NaN or Inf; read them again, in a wider dtype if the model "
                "ran in float16."
            )

    def _layers_to_ask(self, acts: Activations) -> tuple[int, ...]:
        if self.contract.layers_per_prompt == "several" or len(acts.layers) == 1:
            return acts.layers
        recommended = self.contract.extra.get("recommended_layer")
        if recommended in acts.layers:
            return (recommended,)
        raise LayerError(
            f"The activations hold layers {list(acts.layers)}, and this oracle takes one layer "
            f"in a prompt. Choose one, such as acts.layer({acts.layers[0]}), or ask about each "
            "with ask_each()."
        )

    def _warn_untrained(self, layers: set[int]) -> None:
        untrained = sorted(layers - set(self.contract.read_layers))
        if untrained:
            warnings.warn(
                f"This oracle was trained on layers {list(self.contract.read_layers)}, not on "
                f"{untrained}; its answers there may mean little.",
                UntrainedLayerWarning,
                stacklevel=4,
            )

    def _transformed(
        self, acts: Activations, layers: tuple[int, ...], vectors: Float[Tensor, "l p d"]
    ) -> Float[Tensor, "l p d"]:
        return self.transform.apply(
            vectors.detach().float().cpu(),
            layers=layers,
            token_ids=acts.token_ids,
            difference=acts.provenance.subtracted is not None,
        )

    def _with_base(self, made: Mapping[int, _Evidence]) -> dict[int, _Evidence]:
        """Adds the same tokens read from the base, where an adapter was read."""
        wanted = {
            key: e
            for key, e in made.items()
            if e.acts.adapter is not None
            and e.acts.provenance.subtracted is None
            and e.acts.provenance.base_digest == self.model.base_digest
        }
        by_layers: dict[tuple[int, ...], list[int]] = {}
        for key, e in wanted.items():
            by_layers.setdefault(e.layers, []).append(key)
        result = {}
        for layers, keys in by_layers.items():
            for start in range(0, len(keys), _READ_BATCH):
                chunk = keys[start : start + _READ_BATCH]
                ids, mask = self.model.pad([wanted[key].acts.context_ids for key in chunk])
                read = self.model.residuals(ids, mask, layers=layers, adapter=None)
                for row, key in enumerate(chunk):
                    acts = wanted[key].acts
                    padding = ids.shape[1] - len(acts.context_ids)
                    at = [padding + position for position in acts.positions]
                    vectors = self._transformed(acts, layers, read[:, row, at])
                    result[key] = dataclasses.replace(wanted[key], base=vectors)
        return result

    # Prompts

    def _row(
        self,
        question: str,
        evidence: _Evidence,
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
        evidence: _Evidence,
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

    def _check_length(self, rows: Sequence[Row], max_new_tokens: int) -> None:
        limit = self.model.context_length
        longest = max(len(row.prompt.token_ids) for row in rows)
        if limit is not None and longest + max_new_tokens > limit:
            raise ContextLengthError(
                f"The oracle's prompt has {longest} tokens and {max_new_tokens} new ones are asked "
                f"for; the context of {self.model.name} is {limit}. Ask about fewer positions "
                "(acts[-10:]), or lower max_new_tokens."
            )

    # Running

    def _answers(
        self,
        asked: Sequence[tuple[str, _Evidence]],
        names: Sequence[ControlName],
        *,
        seed: int,
        max_batch: int,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> list[Answer | None]:
        """Answers in the order asked; None for what a cancellation left out."""
        refuse_options(options)
        known: dict[tuple[Any, ...], OraclePrompt] = {}
        index_of: dict[Any, int] = {}
        unique: list[Row] = []
        plans: list[dict[str, int]] = []
        for question, evidence in asked:
            plan = {}
            for name, row in self._rows(question, evidence, names, seed, known).items():
                key = row.key
                if key not in index_of:
                    index_of[key] = len(unique)
                    unique.append(row)
                plan[name] = index_of[key]
            plans.append(plan)
        self._check_length(unique, options["max_new_tokens"])
        generated = self._generate_all(unique, max_batch, stop, options)
        provenance = self._provenance()
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
                    tokens=tuple(evidence.acts.tokens[place] for place in evidence.places),
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

    def _generate_all(
        self,
        rows: Sequence[Row],
        max_batch: int,
        stop: threading.Event | None,
        options: Mapping[str, Any],
    ) -> dict[int, Generated]:
        """Row index -> answer. With `stop`, cancelling keeps the batches that are done."""
        if max_batch < 1:
            raise GenerationError(f"max_batch is {max_batch}; it must be at least 1.")
        # Prompts of like length together: less padding.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt.token_ids))
        done: dict[int, Generated] = {}
        with tqdm(total=len(rows), unit="prompt", delay=_SECONDS_BEFORE_PROGRESS) as progress:
            for start in range(0, len(order), max_batch):
                chunk = order[start : start + max_batch]
                try:
                    generated = self._generate([rows[i] for i in chunk], options, stop)
                except KeyboardInterrupt:
                    if stop is None:
                        raise
                    break
                if stop is not None and stop.is_set():
                    break
                done |= zip(chunk, generated, strict=True)
                progress.update(len(chunk))
        return done

    def _generate(
        self,
        rows: Sequence[Row],
        options: Mapping[str, Any],
        stop: threading.Event | None = None,
        streamer: TextIteratorStreamer | None = None,
    ) -> list[Generated]:
        ends = end_ids(self.model.hf_model, self.tokenizer, self.contract)
        recorder = ChosenLogProbs()
        extra = dict(options)
        processors = [recorder, *(extra.pop("logits_processor", None) or ())]
        criteria = [*(extra.pop("stopping_criteria", None) or ())]
        if stop is not None:
            criteria.append(Stopped(stop))
        with self._batch(rows) as batch:
            if any(row.shift for row in rows):
                extra["position_ids"] = batch.position_ids
            pad = self.tokenizer.pad_token_id
            sequences = self.model.hf_model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                pad_token_id=ends[0] if pad is None else pad,
                logits_processor=processors,
                stopping_criteria=criteria,
                streamer=streamer,
                **{"eos_token_id": ends, **extra},
            )
        recorder.add_chosen(sequences[:, -1])
        new = sequences[:, batch.input_ids.shape[1] :].tolist()
        log_probs = torch.stack(recorder.steps, dim=1).tolist()
        results = []
        for ids, steps in zip(new, log_probs, strict=True):
            length = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
            results.append(Generated(str(text).strip(), sum(steps[:length]), length))
        return results

    def _stream(self, row: Row, options: Mapping[str, Any]) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                self._generate([row], options, stop, streamer)
            except BaseException as error:
                failures.append(error)
            finally:
                streamer.on_finalized_text("", stream_end=True)

        thread = threading.Thread(target=work, name="oracle-stream", daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]

    @contextlib.contextmanager
    def _batch(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """The rows as a batch, with the adapter live and the injection in place."""
        ids, mask = self.model.pad([row.prompt.token_ids for row in rows])
        batch = collate(rows, input_ids=ids, attention_mask=mask, contract=self.contract)
        block = self.model.blocks[self.contract.inject_layer]
        with self.model.inference(self.adapter), injecting(block, batch.injection):
            yield batch

    def _prefill(self, rows: Sequence[Row], *, keep: int) -> Float[Tensor, "b k v"]:
        """Logits of the last `keep` columns of one batch."""
        self._check_length(rows, 0)
        takes = inspect.signature(self.model.hf_model.forward).parameters
        with self._batch(rows) as batch:
            inputs: dict[str, Any] = {"use_cache": False}
            if "position_ids" in takes:
                inputs["position_ids"] = batch.position_ids
            if "logits_to_keep" in takes:
                inputs["logits_to_keep"] = keep
            logits = self.model.hf_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, **inputs
            ).logits
        return logits[:, -keep:]

    def _log_probs(self, rows: Sequence[Row], max_batch: int) -> list[float]:
        """Summed log-probability of each row's answer, its end of turn included."""
        results = []
        for start in range(0, len(rows), max_batch):
            chunk = rows[start : start + max_batch]
            # Places of the answers, counted from the right, where left-padded rows are aligned.
            spans = []
            for row in chunk:
                begin, end = row.prompt.answer_start, row.prompt.answer_end
                assert begin is not None, "rows to score have answers"
                assert end is not None, "rows to score have answers"
                length = len(row.prompt.token_ids)
                spans.append((begin - length, end - length))
            logits = self._prefill(chunk, keep=1 - min(begin for begin, _ in spans))
            for row, own, (begin, end) in zip(chunk, logits, spans, strict=True):
                ids = torch.tensor(row.prompt.token_ids[begin : end or None], device=own.device)
                predicted = own[begin - 1 : end - 1].float().log_softmax(-1)
                results.append(float(predicted.gather(1, ids[:, None]).sum()))
        return results

    def _check_wiring(self) -> Check:
        layer = self.contract.read_layers[0]
        layers = (layer,)
        ids = self.model.encode("The capital of France is").token_ids
        acts = self.model.activations(list(ids), layers=layer, positions=[-1])
        vectors = self._transformed(acts, layers, acts.vectors)
        evidence = _Evidence(acts, layers, (0,), vectors)
        rows = [
            self._row("What is this?", evidence, vectors),
            self._row("What is this?", evidence, torch.zeros_like(vectors)),
        ]
        logits = self._prefill(rows, keep=1)[:, -1]
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
