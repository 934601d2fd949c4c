"""Contract + question + number of vectors -> token ids + placeholder positions.

Placeholders are found by where they stand in the text (character offsets), never by searching for
their token: questions contain " ?" too. One function serves training and asking, so that a prompt
cannot differ between the two.
"""

import dataclasses
import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import (
    ChatTemplateError,
    LayerError,
    PlaceholderError,
    PositionError,
    QuestionError,
)
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.tracing.digest import tokenizer_digest

IGNORED_LABEL = -100
LATENTQA_REPLY = "Sure, I've analyzed the assistant."
LATENTQA_ROLE = "reflect"


@dataclass(frozen=True)
class OraclePrompt:
    """One oracle prompt.

    Attributes:
        token_ids: The prompt, and the answer with its end of turn where one was given.
        placeholder_positions: Indices into `token_ids`, layer by layer, in the order of the
            positions read.
        answer_start: Index of the answer's first token; None without an answer.
        answer_end: Index after the end-of-turn token that a model generates to stop. What the
            template writes beyond it (such as a line break) is in `token_ids` too.
    """

    token_ids: tuple[int, ...]
    placeholder_positions: tuple[int, ...]
    answer_start: int | None = None
    answer_end: int | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """`token_ids` with -100 before the answer."""
        start = len(self.token_ids) if self.answer_start is None else self.answer_start
        return (IGNORED_LABEL,) * start + self.token_ids[start:]

    @property
    def answer_span(self) -> tuple[int, int]:
        """Where the answer and its end of turn stand in `token_ids`."""
        assert self.answer_start is not None, "the prompt was rendered without an answer"
        assert self.answer_end is not None, "an answer has an end"
        return self.answer_start, self.answer_end

    @property
    def without_answer(self) -> "OraclePrompt":
        """The prompt up to its answer."""
        return OraclePrompt(self.token_ids[: self.answer_start], self.placeholder_positions)


@dataclass(frozen=True)
class _Scaffold:
    """The chat template's own text: before, between and after the contents of the turns."""

    segments: tuple[str, ...]  # one more than there are turns; the last opens the reply
    closing: str  # what ends the reply
    control_tokens: tuple[str, ...]  # text that the tokenizer would not read as text


_scaffolds: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, ...], _Scaffold]] = (
    weakref.WeakKeyDictionary()
)


def _turns(contract: OracleContract, prefix: str, question: str) -> list[tuple[str, str]]:
    if contract.dialect == "latentqa":
        return [("user", prefix), ("assistant", LATENTQA_REPLY), ("user", question)]
    return [("user", prefix + question)]


def _rename_role(header: str, role: str) -> str:
    before, found, after = header.rpartition("assistant")
    if not found:
        raise ChatTemplateError(
            f"The chat template opens the assistant's turn with {header!r}, in which there is no "
            f"'assistant' to rename to {role!r}, as the dialect latentqa does. Give the tokenizer "
            "a chat template that names the role 'assistant'."
        )
    return before + role + after


def _scaffold(tokenizer: PreTrainedTokenizerBase, contract: OracleContract) -> _Scaffold:
    """Renders marks in place of contents, once a template: rendering is the slow part."""
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template, and oracles are asked "
            "in a chat. Set tokenizer.chat_template, or use the tokenizer saved with the oracle."
        )
    kwargs = dict(contract.chat_template_kwargs)
    key = (
        str(tokenizer.chat_template),
        contract.dialect,
        json.dumps(kwargs, sort_keys=True),
        str(len(tokenizer)),
    )
    known = _scaffolds.setdefault(tokenizer, {})
    if key in known:
        return known[key]
    roles = [role for role, _ in _turns(contract, "", "")]
    marks = [f"\ue000{index}\ue001" for index in range(len(roles) + 1)]
    messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=False)]
    answered = [*messages, {"role": "assistant", "content": marks[-1]}]
    try:
        prompt = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **kwargs
        )
        full = tokenizer.apply_chat_template(answered, tokenize=False, **kwargs)
    except TemplateError as error:
        raise ChatTemplateError(f"The chat template refused the turns {roles}: {error}.") from error
    segments, rest = [], str(prompt)
    for mark in marks[:-1]:
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise ChatTemplateError(
                "The chat template does not write each message's content once and in order, so "
                "placeholders cannot be found by their place. Use a plain chat template."
            )
        segments.append(before)
    segments.append(rest)
    if contract.dialect == "latentqa":
        # Another name for the oracle's own turns keeps them apart from the turns it reads about.
        replies = [*(i for i, role in enumerate(roles) if role == "assistant"), len(segments) - 1]
        for index in replies:
            segments[index] = _rename_role(segments[index], LATENTQA_ROLE)
    control_tokens = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    known[key] = _Scaffold(
        tuple(segments), str(full).rpartition(marks[-1])[2], tuple(control_tokens)
    )
    return known[key]


def _refuse_markup(scaffold: _Scaffold, text: str, what: str) -> None:
    for token in scaffold.control_tokens:
        if token in text:
            raise QuestionError(
                f"The {what} holds {token!r}, which this tokenizer reads as a control "
                "token, not as text: it would end the turn or forge another. Write it differently, "
                "for example with spaces between its characters."
            )


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    contract: OracleContract,
    question: str,
    *,
    layers: Sequence[int],
    num_positions: int,
    answer: str | None = None,
) -> OraclePrompt:
    """Writes the prompt that asks a question of `len(layers) * num_positions` vectors.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        contract: Dialect, prefix and placeholder.
        question: Any text without the tokenizer's control tokens.
        layers: Blocks that the vectors were read after, in the order of the vectors.
        num_positions: Vectors of each layer. 0 gives the prompt without placeholders, which is the
            control `no_activation`.
        answer: A reply to append, for training and for scoring.

    Raises:
        QuestionError: The question is empty, or it or the answer holds a control token.
        LayerError: No layer, or several where the contract allows one.
        PositionError: `num_positions` is negative.
        ChatTemplateError: There is no chat template, or it does not suit the dialect.
        PlaceholderError: A placeholder is not the one token that the contract names.
    """
    if not question.strip():
        raise QuestionError("The question is empty; write what the oracle is to answer.")
    if not layers or (len(layers) > 1 and contract.layers_per_prompt == "one"):
        raise LayerError(
            f"layers is {list(layers)}; this oracle takes "
            + ("exactly one" if contract.layers_per_prompt == "one" else "at least one")
            + " layer in a prompt."
        )
    if num_positions < 0:
        raise PositionError(f"num_positions is {num_positions}; it must be 0 or more.")
    if not tokenizer.is_fast:
        raise PlaceholderError(
            f"The tokenizer {type(tokenizer).__name__} gives no character offsets, by which "
            "placeholders are found; load it as a fast tokenizer."
        )
    scaffold = _scaffold(tokenizer, contract)
    _refuse_markup(scaffold, question, "question")
    prefix, starts = contract.prefix(tuple(layers), num_positions)
    text = ""
    for segment, (_, content) in zip(
        scaffold.segments, _turns(contract, prefix, question), strict=False
    ):
        text += segment + content
    text += scaffold.segments[-1]
    first = len(scaffold.segments[0])
    spans = [(first + start, first + start + len(contract.placeholder)) for start in starts]
    if answer is None:
        ids, offsets = _encode(tokenizer, text)
        return OraclePrompt(tuple(ids), _placeholders(tokenizer, contract, ids, offsets, spans))

    _refuse_markup(scaffold, answer, "answer")
    ids, offsets = _encode(tokenizer, text + answer + scaffold.closing)
    start = next(i for i, (begin, end) in enumerate(offsets) if end > len(text))
    if offsets[start][0] < len(text):
        # A token lies across the border. Asking encodes the prompt alone, so training must too.
        ids, offsets = _encode(tokenizer, text)
        start = len(ids)
        answer_ids, answer_offsets = _encode(tokenizer, answer + scaffold.closing)
        ids += answer_ids
        offsets += [(begin + len(text), end + len(text)) for begin, end in answer_offsets]
    closing = len(text) + len(answer)
    end = next((i + 1 for i, (begin, _) in enumerate(offsets) if begin >= closing), len(ids))
    positions = _placeholders(tokenizer, contract, ids, offsets, spans)
    return OraclePrompt(tuple(ids), positions, answer_start=start, answer_end=end)


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def _placeholders(
    tokenizer: PreTrainedTokenizerBase,
    contract: OracleContract,
    ids: list[int],
    offsets: list[tuple[int, int]],
    spans: list[tuple[int, int]],
) -> tuple[int, ...]:
    if not spans:
        return ()
    # By its end: some tokenizers leave the leading space out of a token's offsets.
    by_end = {end: index for index, (begin, end) in enumerate(offsets) if end > begin}
    positions = []
    for begin, end in spans:
        index = by_end.get(end)
        alone = index is not None and (index == 0 or offsets[index - 1][1] <= begin)
        if index is None or offsets[index][0] < begin or not alone:
            found = tokenizer.convert_ids_to_tokens(
                [i for i, (b, e) in zip(ids, offsets, strict=True) if b < end and e > begin]
            )
            raise PlaceholderError(
                f"The placeholder {contract.placeholder!r} must be one token of its own in the "
                f"prompt; this tokenizer makes {found} of it. Use the tokenizer of "
                f"{contract.base_model!r}, or the placeholder that the oracle was trained with."
            )
        positions.append(index)
    found_ids = {ids[index] for index in positions}
    expected = ids[positions[-1]] if contract.placeholder_id is None else contract.placeholder_id
    if found_ids != {expected}:
        raise PlaceholderError(
            f"The placeholder {contract.placeholder!r} has the token ids {sorted(found_ids)}; the "
            f"one id {expected} was expected. Use the tokenizer of {contract.base_model!r}."
        )
    return tuple(positions)


def describe_tokenizer(
    contract: OracleContract, tokenizer: PreTrainedTokenizerBase
) -> OracleContract:
    """The contract with `placeholder_id`, `neighbour_ids` and `tokenizer_digest` of a tokenizer.

    Raises:
        PlaceholderError: The placeholder is not one token of it.
    """
    blank = dataclasses.replace(contract, placeholder_id=None)
    prompt = render_prompt(
        tokenizer, blank, "What is this?", layers=blank.read_layers[:1], num_positions=2
    )
    first, last = prompt.placeholder_positions
    return dataclasses.replace(
        contract,
        placeholder_id=prompt.token_ids[first],
        neighbour_ids=(prompt.token_ids[first - 1], prompt.token_ids[last + 1]),
        tokenizer_digest=tokenizer_digest(tokenizer),
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase, contract: OracleContract) -> int | None:
    """The control token with which the chat template ends a reply; None where it writes none."""
    scaffold = _scaffold(tokenizer, contract)
    ids, offsets = _encode(tokenizer, scaffold.closing)
    if not ids or scaffold.closing[: offsets[0][1]] not in scaffold.control_tokens:
        return None
    return ids[0]
