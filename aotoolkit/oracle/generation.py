"""What transformers' `generate` needs to know to answer for an oracle."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from aotoolkit.errors import GenerationError
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.prompt import end_of_turn

_COPIES = "it copies each row before the prompt is run, so vectors would go into the wrong rows"
_PASSES = "its passes over several tokens cannot be told from a prompt"
_PROMPT = "the prompt comes from the contract"
_REFUSED = {
    "num_beams": _COPIES,
    "num_return_sequences": f"{_COPIES}; to sample several answers, ask a list of questions",
    "assistant_model": _PASSES,
    "prompt_lookup_num_tokens": _PASSES,
    "prefill_chunk_size": "no chunk of the prompt holds all placeholders",
    "input_ids": _PROMPT,
    "inputs": _PROMPT,
    "inputs_embeds": _PROMPT,
    "attention_mask": _PROMPT,
    "position_ids": "the contract says how positions are counted",
    "return_dict_in_generate": "an answer is text; its log-probability is Answer.log_prob",
    "eos_token_id": "the chat template says where an answer ends",
    "pad_token_id": _PROMPT,
    "streamer": "Oracle.stream gives pieces of text",
    "generation_config": "state what you want of it by name, such as top_k=20",
}


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuses options of `generate` under which vectors would go into wrong places.

    Raises:
        GenerationError: Names the option and the reason.
    """
    for name, reason in _REFUSED.items():
        harmless = (None, 1) if name.startswith("num_") else (None,)
        if options.get(name) not in harmless:
            raise GenerationError(f"Leave {name} out: {reason}.")


@contextlib.contextmanager
def only_stated_options(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `generate` goes by its arguments alone; hold the model's lock.

    A model's generation config is made for chatting. A repetition penalty or a cut of the sampled
    tokens in it would change an oracle's answers without anyone having asked for it.
    """
    before = model.generation_config
    # Given as an argument, a config would have its gaps filled from the model's.
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


@dataclass(frozen=True)
class Generated:
    """One generated answer: text, summed log-probability (nats) and number of tokens."""

    text: str
    log_prob: float
    num_tokens: int


class ChosenLogProbs(LogitsProcessor):
    """Collects the log-probability of each chosen token without keeping all steps' logits."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Called by `generate` with the scores of the next tokens, which stay as they are."""
        self.add_chosen(input_ids[:, -1])
        self._last = scores
        return scores

    def add_chosen(self, chosen: Tensor) -> None:
        """Adds the tokens that followed the last scores."""
        if self._last is None:
            return
        scores = self._last.float()
        self.steps.append(scores.gather(1, chosen[:, None]).squeeze(1) - scores.logsumexp(-1))
        self._last = None


class Stopped(StoppingCriteria):
    """Ends all rows once an event is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002  # pyright: ignore[reportIncompatibleMethodOverride]
        """Called by `generate` after each step: which rows are done."""
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


def end_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contract: OracleContract
) -> list[int]:
    """Tokens that end an answer: the template's end of turn, and those the model came with.

    Raises:
        GenerationError: There is none.
    """
    config: Any = model.generation_config
    given = config.eos_token_id
    found: Sequence[Any] = [
        end_of_turn(tokenizer, contract),
        tokenizer.eos_token_id,
        *(given if isinstance(given, list) else [given]),
    ]
    ends = list(dict.fromkeys(int(token) for token in found if token is not None))
    if not ends:
        raise GenerationError(
            "Neither the chat template nor the tokenizer nor the generation config names a token "
            "that ends an answer. Set tokenizer.eos_token."
        )
    return ends
