"""A fine-tuned model beside its base: what each says, where they part, what an oracle says of it.

Both are read on the same text, the prompt with the *fine-tuned* model's reply, since activations
can be compared token by token only where the tokens are the same. Whatever an oracle says about the
base's activations of that text is what the text alone gives away.
"""

import functools
import html
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aotoolkit.errors import EvalError
from aotoolkit.oracle import Answer, Oracle
from aotoolkit.oracle.generation import Stopped
from aotoolkit.tracing import ActivationDifference, Activations, TracedModel, activation_difference
from aotoolkit.tracing.activations import Layer
from aotoolkit.tracing.encoding import Message, Prompt

if TYPE_CHECKING:
    import pandas

READS = ("fine-tuned", "base", "difference")


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptComparison:
    """One prompt, what both models reply to it, and both reads of the fine-tuned model's dialogue.

    Attributes:
        prompt: As it was given.
        adapter: Name of the fine-tuned model's adapter.
        reply: What the fine-tuned model says.
        base_reply: What the base says.
        acts: The prompt with `reply`, read from the fine-tuned model.
        base_acts: The same tokens, read from the base.
    """

    prompt: str | Sequence[Message]
    adapter: str
    reply: str
    base_reply: str
    acts: Activations
    base_acts: Activations

    @property
    def text(self) -> str:
        """The prompt in one line, to show: the last message of a chat."""
        last = self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])
        return " ".join(last.split())

    @functools.cached_property
    def difference(self) -> ActivationDifference:
        """Norm and cosine by layer and token, fine-tuned beside base."""
        return activation_difference(self.acts, self.base_acts)


@dataclass(frozen=True, kw_only=True)
class BatteryRow:
    """One question about one prompt, asked about the three reads.

    Attributes:
        prompt: The prompt in one line.
        question: What was asked.
        fine_tuned: The answer about the fine-tuned model's activations.
        base: About the base's activations of the same text.
        difference: About fine-tuned minus base.
    """

    prompt: str
    question: str
    fine_tuned: Answer
    base: Answer
    difference: Answer

    @property
    def answers(self) -> dict[str, Answer]:
        """Read -> answer, in the order of `READS`."""
        return dict(zip(READS, (self.fine_tuned, self.base, self.difference), strict=True))


@dataclass(frozen=True, kw_only=True, repr=False)
class Battery:
    """The answers to a list of questions about a list of prompts.

    Attributes:
        rows: One for each prompt and question, in the order asked.
        num_asked: How many there were to be; more than `rows` where it was stopped.
    """

    rows: tuple[BatteryRow, ...]
    num_asked: int

    @property
    def complete(self) -> bool:
        """Whether every question was asked about every prompt."""
        return len(self.rows) == self.num_asked

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each prompt and question: the three answers, and whether each is supported."""
        import pandas

        return pandas.DataFrame(
            [
                {"prompt": row.prompt, "question": row.question}
                | {
                    f"{read}{suffix}": value
                    for read, answer in row.answers.items()
                    for suffix, value in (("", answer.text), (" supported", answer.supported))
                }
                for row in self.rows
            ]
        )

    def __repr__(self) -> str:
        return f"Battery({len(self.rows)} of {self.num_asked} questions answered, three reads each)"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", "question", *READS))
        body = "".join(
            f"<tr><td>{html.escape(row.prompt)}</td><td>{html.escape(row.question)}</td>"
            + "".join(f"<td>{html.escape(_marked(answer))}</td>" for answer in row.answers.values())
            + "</tr>"
            for row in self.rows
        )
        note = (
            "" if self.complete else f"<p>Stopped after {len(self.rows)} of {self.num_asked}.</p>"
        )
        return (
            f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>* a control without the activations says the same</p>{note}</div>"
        )


def compare_prompts(
    model: TracedModel,
    prompts: Sequence[str | Sequence[Message]],
    adapter: str,
    *,
    layers: Layer | Sequence[Layer],
    max_new_tokens: int = 48,
    batch_size: int = 8,
    on_comparison: Callable[[PromptComparison], object] | None = None,
    stop: threading.Event | None = None,
) -> list[PromptComparison]:
    """Lets the fine-tuned model and its base reply, and reads the same dialogues from both.

    Args:
        model: The base, with the adapter loaded.
        prompts: Chats, or texts that are continued.
        adapter: The fine-tuned model.
        layers: Blocks to read, or fractions of depth.
        max_new_tokens: Longest reply.
        batch_size: Prompts at once.
        on_comparison: Called with each as it is done, a batch at a time.
        stop: Ends it when it is set, from another thread; the batches that are done are kept.

    Raises:
        EvalError: There are no prompts.
        UnknownAdapterError, PromptError, LayerError, ContextLengthError: See
            `TracedModel.activations`.
    """
    if not prompts:
        raise EvalError("There are no prompts to compare the models on. Give one or more.")
    done: list[PromptComparison] = []
    stop = stop or threading.Event()
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stopping_criteria": [Stopped(stop)],
    }
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        own, bases = (model.generate(batch, adapter=live, **options) for live in (adapter, None))
        if stop.is_set():  # so the replies may be cut
            break
        dialogues = [_with_reply(prompt, reply) for prompt, reply in zip(batch, own, strict=True)]
        read, read_base = (
            model.activations(dialogues, layers=layers, adapter=live, add_generation_prompt=False)
            for live in (adapter, None)
        )
        for prompt, reply, base_reply, acts, base_acts in zip(
            batch, own, bases, read, read_base, strict=True
        ):
            comparison = PromptComparison(
                prompt=prompt,
                adapter=adapter,
                reply=reply,
                base_reply=base_reply,
                acts=acts,
                base_acts=base_acts,
            )
            done.append(comparison)
            if on_comparison is not None:
                on_comparison(comparison)
    return done


def ask_battery(
    oracle: Oracle,
    comparisons: Sequence[PromptComparison],
    questions: Sequence[str],
    *,
    layers: Layer | Sequence[Layer] | None = None,
    positions: Sequence[int] | slice | None = None,
    on_row: Callable[[BatteryRow], object] | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> Battery:
    """Asks every question about every comparison: fine-tuned, base and difference.

    Args:
        oracle: The oracle.
        comparisons: What `compare_prompts` returned.
        questions: The questions.
        layers: Those asked about, among those that were read; default: as `Oracle.ask` chooses.
        positions: Places among the tokens read, negative from the end; default all but the first
            token, which only marks the start of every text alike.
        on_row: Called with each row as it is done, a prompt at a time.
        stop: Ends the battery when it is set, from another thread; the rows that are done are kept.
        **options: For `Oracle.ask`.

    Raises:
        EvalError: There is nothing to ask, or nothing to ask about.
        The errors of `Oracle.ask`.
    """
    if not comparisons or not questions:
        raise EvalError(
            f"There are {len(comparisons)} prompts and {len(questions)} questions: a battery needs "
            "one of each at least. Compare prompts first, and give a question."
        )
    rows: list[BatteryRow] = []
    stop = stop or threading.Event()
    options["stopping_criteria"] = [*options.get("stopping_criteria", ()), Stopped(stop)]
    for comparison in comparisons:
        reads = [
            _chosen(acts, layers, positions) for acts in (comparison.acts, comparison.base_acts)
        ]
        reads.append(reads[0] - reads[1])
        asked = [(question, acts) for question in questions for acts in reads]
        answers = oracle.ask([q for q, _ in asked], [a for _, a in asked], **options)
        if stop.is_set():  # so the answers may be cut
            break
        for row in _rows(comparison.text, questions, iter(answers)):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return Battery(rows=tuple(rows), num_asked=len(comparisons) * len(questions))


def _rows(prompt: str, questions: Sequence[str], answers: Iterator[Answer]) -> Iterator[BatteryRow]:
    for question in questions:
        yield BatteryRow(
            prompt=prompt,
            question=question,
            fine_tuned=next(answers),
            base=next(answers),
            difference=next(answers),
        )


def _chosen(
    acts: Activations,
    layers: Layer | Sequence[Layer] | None,
    positions: Sequence[int] | slice | None,
) -> Activations:
    chosen = acts if layers is None else acts.layer(layers)
    if positions is None:
        return chosen[1:] if len(chosen) > 1 else chosen
    return chosen[positions]


def _with_reply(prompt: str | Sequence[Message], reply: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt + reply
    return [*prompt, {"role": "assistant", "content": reply}]


def _marked(answer: Answer) -> str:
    return " ".join(answer.text.split()) + ("*" if answer.unsupported_by else "")
