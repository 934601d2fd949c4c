"""Rows in, text or logits out: the only place where an oracle's model is run."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

from aotoolkit.errors import ContextLengthError, GenerationError
from aotoolkit.oracle.batch import Batch, Row, collate
from aotoolkit.oracle.continuations import MAX_TOKENS, continuation_log_probs, sharing_batches
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.generation import (
    ChosenLogProbs,
    Generated,
    Stopped,
    end_ids,
    only_stated_options,
)
from aotoolkit.oracle.injection import injecting
from aotoolkit.tracing import TracedModel

MAX_BATCH = 128
_SECONDS_BEFORE_PROGRESS = 2.0


def batches(rows: Sequence[Row], max_batch: int, max_new_tokens: int) -> Iterator[list[int]]:
    """Indices of rows that run together: at most `max_batch`, and of `MAX_TOKENS` but for one row.

    Raises:
        GenerationError: `max_batch` is below 1.
    """
    _check_max_batch(max_batch)
    # Prompts of like length together: less padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt.token_ids))
    batch: list[int] = []
    for index in order:
        # Sorted, so that this row is the longest so far, which the others are padded to.
        length = len(rows[index].prompt.token_ids) + max_new_tokens
        if batch and (len(batch) == max_batch or (len(batch) + 1) * length > MAX_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _check_max_batch(max_batch: int) -> None:
    if max_batch < 1:
        raise GenerationError(f"max_batch is {max_batch}; it must be at least 1.")


@dataclass(frozen=True)
class OracleRunner:
    """Runs batches under the model's lock, with the oracle's adapter live and vectors injected."""

    model: TracedModel
    adapter: str | None
    contract: OracleContract
    tokenizer: PreTrainedTokenizerBase

    def check_length(self, rows: Sequence[Row], max_new_tokens: int) -> None:
        """Refuses prompts that, with their answers, are longer than the context.

        Raises:
            ContextLengthError: A prompt is.
        """
        limit = self.model.context_length
        longest = max(len(row.prompt.token_ids) for row in rows)
        if limit is not None and longest + max_new_tokens > limit:
            raise ContextLengthError(
                f"The oracle's prompt has {longest} tokens and {max_new_tokens} new ones are asked "
                f"for; the context of {self.model.name} is {limit}. Ask about fewer positions "
                "(acts[-10:]), or lower max_new_tokens."
            )

    def generate_all(
        self,
        rows: Sequence[Row],
        max_batch: int,
        stop: threading.Event | None,
        options: Mapping[str, Any],
        on_batch: Callable[[Mapping[int, Generated]], object] | None = None,
    ) -> dict[int, Generated]:
        """Row index -> answer. With `stop`, cancelling keeps the batches that are done.

        `on_batch` is called after each batch with all that is done so far, and stands in for the
        progress bar. One batch alone has none: it would move once, at the end.
        """
        done: dict[int, Generated] = {}
        chunks = list(batches(rows, max_batch, options["max_new_tokens"]))
        with tqdm(
            total=len(rows),
            unit="prompt",
            delay=_SECONDS_BEFORE_PROGRESS,
            leave=False,
            disable=on_batch is not None or len(chunks) == 1,
        ) as progress:
            for chunk in chunks:
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
                if on_batch is not None:
                    on_batch(done)
        return done

    def _generate(
        self,
        rows: Sequence[Row],
        options: Mapping[str, Any],
        stop: threading.Event | None = None,
        streamer: TextIteratorStreamer | None = None,
    ) -> list[Generated]:
        recorder = ChosenLogProbs()
        extra = dict(options)
        processors = [recorder, *(extra.pop("logits_processor", None) or ())]
        criteria = [*(extra.pop("stopping_criteria", None) or ())]
        if stop is not None:
            criteria.append(Stopped(stop))
        with self._batch(rows) as batch:
            if any(row.shift for row in rows):
                extra["position_ids"] = batch.position_ids
            ends = end_ids(self.model.hf_model, self.tokenizer, self.contract)
            pad = self.tokenizer.pad_token_id
            with only_stated_options(self.model.hf_model):
                sequences = self.model.hf_model.generate(  # pyright: ignore[reportCallIssue]
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    pad_token_id=ends[0] if pad is None else pad,
                    logits_processor=processors,
                    stopping_criteria=criteria,
                    streamer=streamer,
                    eos_token_id=ends,
                    **extra,
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

    def stream(self, row: Row, options: Mapping[str, Any]) -> Generator[str]:
        """Pieces of one row's answer, generated on a thread that closing the iterator ends."""
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
        batch = self._collated(rows)
        block = self.model.blocks[self.contract.inject_layer]
        with self.model.inference(self.adapter), injecting(block, batch.injection):
            yield batch

    def _collated(self, rows: Sequence[Row]) -> Batch:
        ids, mask = self.model.pad([row.prompt.token_ids for row in rows])
        return collate(rows, input_ids=ids, attention_mask=mask, contract=self.contract)

    def prefill(self, rows: Sequence[Row], *, keep: int) -> Float[Tensor, "b k v"]:
        """Logits of the last `keep` columns of one batch."""
        self.check_length(rows, 0)
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

    def log_probs(self, rows: Sequence[Row], max_batch: int) -> list[float]:
        """Summed log-probability of each row's answer, its end of turn included.

        A prompt with several answers runs once, where the model has a cache that can be repeated.
        """
        _check_max_batch(max_batch)
        results = [0.0] * len(rows)
        answers: dict[Any, list[int]] = {}
        for index, row in enumerate(rows):
            answers.setdefault(row.without_answer.key, []).append(index)
        shared = [own for own in answers.values() if len(own) > 1 < max_batch]
        spans = [row.prompt.answer_span for row in rows]
        done: set[int] = set()
        for groups in sharing_batches(
            shared, [begin for begin, _ in spans], [end - begin for begin, end in spans], max_batch
        ):
            found = self._shared_log_probs([[rows[index] for index in own] for own in groups])
            if found is None:
                break
            for own, values in zip(groups, found, strict=True):
                done.update(own)
                for index, value in zip(own, values, strict=True):
                    results[index] = value
        alone = [index for index in range(len(rows)) if index not in done]
        for places in batches([rows[index] for index in alone], max_batch, 0):
            indices = [alone[place] for place in places]
            found = self._whole_log_probs([rows[index] for index in indices])
            for index, value in zip(indices, found, strict=True):
                results[index] = value
        return results

    def _shared_log_probs(self, groups: Sequence[Sequence[Row]]) -> list[list[float]] | None:
        """Of rows that are of one prompt in each group; None where prompts cannot be shared."""
        self.check_length([row for own in groups for row in own], 0)
        batch = self._collated([own[0].without_answer for own in groups])
        block = self.model.blocks[self.contract.inject_layer]
        with self.model.inference(self.adapter):
            return continuation_log_probs(
                self.model.hf_model,
                [
                    [row.prompt.token_ids[slice(*row.prompt.answer_span)] for row in own]
                    for own in groups
                ],
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                prompts=injecting(block, batch.injection),
            )

    def _whole_log_probs(self, rows: Sequence[Row]) -> list[float]:
        """Of one batch, each row run as a whole."""
        # Places of the answers, counted from the right, where left-padded rows are aligned.
        spans = []
        for row in rows:
            begin, end = row.prompt.answer_span
            length = len(row.prompt.token_ids)
            spans.append((begin - length, end - length))
        logits = self.prefill(rows, keep=1 - min(begin for begin, _ in spans))
        results = []
        for row, own, (begin, end) in zip(rows, logits, spans, strict=True):
            ids = torch.tensor(row.prompt.token_ids[begin : end or None], device=own.device)
            predicted = own[begin - 1 : end - 1].float().log_softmax(-1)
            results.append(float(predicted.gather(1, ids[:, None]).sum()))
        return results
