"""Examples -> a batch of oracle prompts with the base's activations in it.

The vectors are read here, with every adapter off, or taken from an `ActivationCache`. Then they go
through the same transform, but for what is recalled only when it is asked, and into the same prompt
as then.

Rows are padded on the *right*: attention is causal, so no token sees the padding behind it, and the
forward needs neither an attention mask (which would cost the fast attention kernels) nor position
ids (but for contracts that shift them).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aotoolkit.data.example import Example
from aotoolkit.errors import ContextLengthError
from aotoolkit.oracle.batch import position_ids, span_shift
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.controls import random_vectors
from aotoolkit.oracle.injection import Injection
from aotoolkit.oracle.prompt import IGNORED_LABEL, OraclePrompt, render_prompt
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.reading import ContextRead, plan_reads, read_contexts

if TYPE_CHECKING:
    from aotoolkit.training.activation_cache import ActivationCache


@dataclass(frozen=True, eq=False)
class OracleBatch:
    """A right-padded batch of oracle prompts with their vectors.

    Attributes:
        input_ids: `b s`.
        attention_mask: `b s`, 1 at tokens. The forward does without it (see the module).
        position_ids: `b s`; None where each row counts its tokens from 0.
        labels: `b s`, -100 outside the answers.
        answer_rows: `n`, the row of each of the answers' tokens, on the CPU.
        answer_cols: `n`, its column.
        injection: the vectors and where they go.
        sources: the source of each row.
        num_label_tokens: tokens of the answers of the *global* batch, of which this may be the
            rows of one process; by it the summed loss is divided, so that a token counts the same
            whatever number of processes there are.
    """

    input_ids: Int[Tensor, "b s"]
    attention_mask: Int[Tensor, "b s"]
    position_ids: Int[Tensor, "b s"] | None
    labels: Int[Tensor, "b s"]
    answer_rows: Int[Tensor, " n"]
    answer_cols: Int[Tensor, " n"]
    injection: Injection
    sources: tuple[str, ...]
    num_label_tokens: int

    def __post_init__(self) -> None:
        assert self.input_ids.shape == self.attention_mask.shape == self.labels.shape
        assert self.answer_rows.shape == self.answer_cols.shape
        assert len(self.sources) == len(self.input_ids)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def answer_ids(self) -> Int[Tensor, " n"]:
        """The answers' tokens, row after row."""
        device = self.labels.device
        return self.labels[self.answer_rows.to(device), self.answer_cols.to(device)]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device, for a model that has moved since."""
        moved = {
            name: None if (tensor := getattr(self, name)) is None else tensor.to(device)
            for name in ("input_ids", "attention_mask", "position_ids", "labels")
        }
        injection = dataclasses.replace(self.injection, vectors=self.injection.vectors.to(device))
        return dataclasses.replace(self, injection=injection, **moved)

    def split(self, max_tokens: int = 2048) -> list[Self]:
        """The batch in pieces of whole rows, for one backward pass each.

        Prompts of like length share a batch, so the batch of the longest ones would decide how much
        memory a run needs; in pieces it takes what an average batch takes. The losses of the pieces
        add up to that of the batch.

        Args:
            max_tokens: of a piece, padding included; a longer row is a piece of its own. Enough to
                keep an accelerator busy.
        """
        count, length = self.input_ids.shape
        pieces = math.ceil(count / max(1, max_tokens // length))
        size = math.ceil(count / pieces)
        return [self._rows(start, min(start + size, count)) for start in range(0, count, size)]

    def _rows(self, start: int, stop: int) -> Self:
        """Some of the rows, without the padding that they do not need."""
        length = int(self.attention_mask[start:stop].sum(-1).max())
        padded = {
            name: None if (tensor := getattr(self, name)) is None else tensor[start:stop, :length]
            for name in ("input_ids", "attention_mask", "position_ids", "labels")
        }
        answers = (self.answer_rows >= start) & (self.answer_rows < stop)
        injected = (self.injection.rows >= start) & (self.injection.rows < stop)
        injection = dataclasses.replace(
            self.injection,
            vectors=self.injection.vectors[injected.to(self.injection.vectors.device)],
            rows=self.injection.rows[injected] - start,
            cols=self.injection.cols[injected],
        )
        return dataclasses.replace(
            self,
            **padded,
            answer_rows=self.answer_rows[answers] - start,
            answer_cols=self.answer_cols[answers],
            injection=injection,
            sources=self.sources[start:stop],
        )


class ActivationCollator:
    """Reads the vectors of examples from the base and writes their prompts.

    Args:
        model: the target; read with every adapter off.
        contract: prompt, layers and formula.
        transform: applied to the vectors before injection, as `as_trained` has it.
        cache: where vectors are looked up instead of being read.

    Raises:
        ActivationCacheError: the cache is of another base.
    """

    def __init__(
        self,
        model: TracedModel,
        contract: OracleContract,
        transform: VectorTransform,
        *,
        cache: "ActivationCache | None" = None,
    ) -> None:
        self.model = model
        self.contract = contract
        self.transform = transform.as_trained
        self.cache = cache
        if cache is not None:
            cache.check_base(model)

    def vectors(self, examples: Sequence[Example]) -> list[Float[Tensor, "n d"]]:
        """The transformed vectors of each example, `l*p d`, layer by layer, in float32.

        Evidence `zero` is not read; `random` has random directions, the same for the same example
        whatever process makes it, with the norms of the vectors that stand there. Both are as the
        controls of asking.
        """
        result: dict[int, Tensor] = {}
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            if example.evidence == "zero":
                count = len(example.layers) * len(example.positions)
                result[index] = torch.zeros(count, self.model.d_model, device=self.model.device)
            else:
                by_context.setdefault(example.context_ids, []).append(index)
        reads = plan_reads([examples[i] for indices in by_context.values() for i in indices])
        source = self.cache.lookup if self.cache else lambda r: read_contexts(self.model, r)
        for read, read_vectors in source(tuple(reads.values())):
            for index in by_context[read.context_ids]:
                result[index] = self._evidence(examples[index], read, read_vectors)
        return [result[index] for index in range(len(examples))]

    def _evidence(
        self, example: Example, read: ContextRead, vectors: Float[Tensor, "l p d"]
    ) -> Float[Tensor, "n d"]:
        transformed = self.transform.apply(
            vectors[read.rows_of(example)].to(self.model.device).float(),
            layers=example.layers,
            token_ids=[example.context_ids[position] for position in example.positions],
        )
        if example.evidence == "random":
            transformed = random_vectors(transformed, seed=example_seed(example)).to(
                transformed.device
            )
        return transformed.flatten(0, 1)

    def prompt(self, example: Example) -> OraclePrompt:
        """The prompt and answer of an example.

        Raises:
            ContextLengthError: it is longer than the model's context.
            QuestionError, LayerError, PlaceholderError: see `render_prompt`.
        """
        prompt = render_prompt(
            self.model.tokenizer,
            self.contract,
            example.question,
            layers=example.layers,
            num_positions=len(example.positions),
            answer=example.answer,
        )
        limit = self.model.context_length
        if limit is not None and len(prompt.token_ids) > limit:
            raise ContextLengthError(
                f"The prompt of an example of {example.source!r} has {len(prompt.token_ids)} "
                f"tokens with its answer; the context of {self.model.name} is {limit}. Leave such "
                "examples out (max_prompt_tokens of the mixture), or read fewer positions."
            )
        return prompt

    def batch(
        self,
        examples: Sequence[Example],
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Float[Tensor, "n d"]],
        *,
        num_label_tokens: int | None = None,
    ) -> OracleBatch:
        """One batch of prompts and their vectors.

        Args:
            examples: what the rows are made of.
            prompts: the prompt of each.
            vectors: the vectors of each.
            num_label_tokens: of the global batch; default: these rows are the whole of it.
        """
        length = max(len(prompt.token_ids) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros(len(prompts), length, dtype=torch.long)
        labels = torch.full((len(prompts), length), IGNORED_LABEL)
        rows: list[int] = []
        cols: list[int] = []
        for row, prompt in enumerate(prompts):
            own = len(prompt.token_ids)
            input_ids[row, :own] = torch.tensor(prompt.token_ids)
            mask[row, :own] = 1
            labels[row, :own] = torch.tensor(prompt.labels)
            rows += [row] * len(prompt.placeholder_positions)
            cols += prompt.placeholder_positions
        answer_rows, answer_cols = (labels != IGNORED_LABEL).nonzero(as_tuple=True)
        shifts = [span_shift(self.contract, example.positions) for example in examples]
        device = self.model.device
        return OracleBatch(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            position_ids=position_ids(mask, shifts).to(device) if any(shifts) else None,
            labels=labels.to(device),
            answer_rows=answer_rows,
            answer_cols=answer_cols,
            injection=Injection(
                vectors=torch.cat(list(vectors)),
                rows=torch.tensor(rows),
                cols=torch.tensor(cols),
                formula=self.contract.formula,
                coefficient=self.contract.coefficient,
                final_scale=self.contract.final_scale,
            ),
            sources=tuple(example.source for example in examples),
            num_label_tokens=len(answer_rows) if num_label_tokens is None else num_label_tokens,
        )

    def __call__(self, examples: Sequence[Example]) -> OracleBatch:
        """One batch of all the examples."""
        return self.batch(
            examples, [self.prompt(example) for example in examples], self.vectors(examples)
        )


def example_seed(example: Example) -> int:
    """A number that depends on what the example reads and asks alone, the same on every machine."""
    parts = [*map(list, (example.context_ids, example.positions, example.layers)), example.question]
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1
