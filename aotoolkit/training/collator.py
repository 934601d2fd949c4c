"""Examples -> batches with the base's activations in them.

The base's activations are read here, between two training steps, for a *window* of several batches
at once: switching the oracle's adapter off and on costs as much as a small forward pass, examples
that share a context share its pass, and within a window batches can be made of prompts of like
length. Each window is a function of (seed, index) alone, so a run that was stopped can start at any
step without replaying the ones before it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from aotoolkit.data.example import Example
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.injection import Injection
from aotoolkit.oracle.prompt import OraclePrompt, render_prompt
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel

# Draws some examples that share one context.
ExampleSource = Callable[[random.Random], list[Example]]

CONTEXTS_PER_FORWARD = 64


@dataclass(frozen=True, eq=False)
class OracleBatch:
    """A left-padded batch of oracle prompts with their vectors.

    Attributes:
        input_ids: `b s`.
        attention_mask: `b s`.
        labels: `b s`, -100 outside the answers.
        injection: the vectors and where they go.
        sources: the source of each row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    injection: Injection
    sources: tuple[str, ...]

    @property
    def position_ids(self) -> Tensor:
        """`b s`, counted from the first token that is not padding."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def num_label_columns(self) -> int:
        """How many columns at the right hold all the answers."""
        columns = (self.labels != -100).any(0).nonzero()
        return self.labels.shape[1] - int(columns[0])


class ActivationCollator:
    """Reads the vectors of examples from the base and writes their prompts.

    Args:
        model: the target; read with every adapter off.
        contract: prompt, layers and formula.
        transform: applied to the vectors before injection.
    """

    def __init__(
        self, model: TracedModel, contract: OracleContract, transform: VectorTransform
    ) -> None:
        self.model = model
        self.contract = contract
        self.transform = transform
        pad: Any = model.tokenizer.pad_token_id
        end: Any = model.tokenizer.eos_token_id
        self.pad_token_id: int = end if pad is None else pad

    def vectors(self, examples: Sequence[Example]) -> list[Tensor]:
        """The transformed vectors of each example, `l*p d`, layer by layer."""
        contexts = sorted({example.context_ids for example in examples}, key=lambda c: (len(c), c))
        layers = tuple(sorted({layer for example in examples for layer in example.layers}))
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            by_context.setdefault(example.context_ids, []).append(index)
        result: list[Tensor | None] = [None] * len(examples)
        with self.model.using(None):
            for start in range(0, len(contexts), CONTEXTS_PER_FORWARD):
                chunk = contexts[start : start + CONTEXTS_PER_FORWARD]
                length = max(map(len, chunk))
                input_ids = torch.full((len(chunk), length), self.pad_token_id)
                mask = torch.zeros(len(chunk), length, dtype=torch.long)
                for row, ids in enumerate(chunk):
                    input_ids[row, : len(ids)] = torch.tensor(ids)
                    mask[row, : len(ids)] = 1
                read = self.model.residuals(
                    input_ids.to(self.model.device),
                    mask.to(self.model.device),
                    layers=layers,
                    adapter=None,
                )
                for row, ids in enumerate(chunk):
                    for index in by_context[ids]:
                        example = examples[index]
                        chosen = [layers.index(layer) for layer in example.layers]
                        vectors = read[chosen, row][:, list(example.positions)]
                        result[index] = self.transform.apply(
                            vectors,
                            layers=example.layers,
                            token_ids=[ids[position] for position in example.positions],
                        ).flatten(0, 1)
        return [vectors for vectors in result if vectors is not None]

    def prompt(self, example: Example) -> OraclePrompt:
        """The prompt and answer of an example."""
        return render_prompt(
            self.model.tokenizer,
            self.contract,
            example.question,
            layers=example.layers,
            num_positions=len(example.positions),
            answer=example.answer,
        )

    def batch(
        self,
        examples: Sequence[Example],
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
    ) -> OracleBatch:
        """One batch of prompts and their vectors."""
        length = max(len(prompt.token_ids) for prompt in prompts)
        input_ids = torch.full((len(prompts), length), self.pad_token_id)
        mask = torch.zeros(len(prompts), length, dtype=torch.long)
        labels = torch.full((len(prompts), length), -100)
        rows: list[int] = []
        cols: list[int] = []
        for row, prompt in enumerate(prompts):
            pad = length - len(prompt.token_ids)
            input_ids[row, pad:] = torch.tensor(prompt.token_ids)
            mask[row, pad:] = 1
            labels[row, pad:] = torch.tensor(prompt.labels)
            rows += [row] * len(prompt.placeholder_positions)
            cols += [pad + position for position in prompt.placeholder_positions]
        injection = Injection(
            vectors=torch.cat(list(vectors)),
            rows=torch.tensor(rows),
            cols=torch.tensor(cols),
            formula=self.contract.formula,
            coefficient=self.contract.coefficient,
            final_scale=self.contract.final_scale,
        )
        sources = tuple(example.source for example in examples)
        return OracleBatch(input_ids, mask, labels, injection, sources)

    def __call__(self, examples: Sequence[Example]) -> OracleBatch:
        """One batch of all the examples."""
        return self.batch(
            examples, [self.prompt(example) for example in examples], self.vectors(examples)
        )


class BatchStream(IterableDataset):
    """An endless stream of batches; `draw(step, rng)` gives the examples of a context.

    Args:
        collator: makes the batches.
        draw: draws examples that share one context, given the training step (so that a mixture
            can change as training goes on) and a generator.
        batch_size: rows of a batch.
        seed: of the whole stream.
        start: the first step to give, when a run is resumed.
        window: batches made at once.
        warm_up_collator: makes the batches of the first `warm_up_steps` instead.
        warm_up_steps: how many steps those are.
    """

    def __init__(
        self,
        collator: ActivationCollator,
        draw: Callable[[int, random.Random], list[Example]],
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        window: int = 16,
        warm_up_collator: ActivationCollator | None = None,
        warm_up_steps: int = 0,
    ) -> None:
        self.warm_up_collator = warm_up_collator or collator
        self.warm_up_steps = warm_up_steps
        self.collator = collator
        self.draw = draw
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.window = window

    def window_batches(self, index: int) -> list[OracleBatch]:
        """The batches of one window, a function of the seed and `index` alone."""
        rng = random.Random(f"{self.seed}/{index}")
        warming = index * self.window < self.warm_up_steps
        collator = self.warm_up_collator if warming else self.collator
        wanted = self.window * self.batch_size
        examples: list[Example] = []
        while len(examples) < wanted:
            examples += self.draw(index * self.window, rng)
        rng.shuffle(examples)
        examples = examples[:wanted]
        prompts = [collator.prompt(example) for example in examples]
        vectors = collator.vectors(examples)
        order = sorted(range(wanted), key=lambda i: (len(prompts[i].token_ids), i))
        groups = [order[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]
        rng.shuffle(groups)
        return [
            collator.batch(
                [examples[i] for i in group],
                [prompts[i] for i in group],
                [vectors[i] for i in group],
            )
            for group in groups
        ]

    def __iter__(self) -> Iterator[OracleBatch]:
        index, skip = divmod(self.start, self.window)
        while True:
            yield from self.window_batches(index)[skip:]
            index, skip = index + 1, 0
