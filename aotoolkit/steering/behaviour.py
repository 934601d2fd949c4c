"""What a target is steered to: question-answer pairs that an oracle shall agree with."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from aotoolkit.errors import SteeringError
from aotoolkit.oracle import Oracle
from aotoolkit.steering.oracles import as_oracles
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Prompt

# What LatentQA asks of a control sentence, in general words (arXiv:2412.08686, section 5).
QUESTIONS = (
    "What is the assistant's persona?",
    "How would you describe the assistant's behaviour?",
    "What is the assistant's goal?",
    "What tone does the assistant use?",
    "What instruction does the assistant follow?",
    "What will the assistant say next?",
    "What topic is the assistant thinking about?",
    "What is unusual about the assistant?",
)


@dataclass(frozen=True)
class QuestionAnswer:
    """A question about the target's activations, and the answer that the oracle shall give."""

    question: str
    answer: str


@dataclass(frozen=True)
class Behaviour:
    """A behaviour as an oracle sees it.

    Attributes:
        pairs: questions and the answers that the oracle shall give about the steered target.
        sentence: the sentence that the pairs were made from; None where they were written.

    Raises:
        SteeringError: there is no pair, or an empty question or answer.
    """

    pairs: tuple[QuestionAnswer, ...]
    sentence: str | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise SteeringError(
                "A behaviour needs at least one question-answer pair, such as "
                '("What is the secret word?", "The tiger.").'
            )
        for pair in self.pairs:
            if not pair.question.strip() or not pair.answer.strip():
                raise SteeringError(
                    f"The pair {pair!r} has an empty question or answer; write both."
                )

    @classmethod
    def of(cls, pairs: "Behaviour | Mapping[str, str] | Iterable[tuple[str, str]]") -> Self:
        """A behaviour from pairs of strings, or question -> answer.

        Raises:
            SteeringError: what is given are no such pairs.
        """
        if isinstance(pairs, Behaviour):
            return cls(pairs.pairs, pairs.sentence)
        items: Iterable[Any] = pairs.items() if isinstance(pairs, Mapping) else pairs
        made = []
        for item in items:
            if isinstance(item, QuestionAnswer):
                made.append(item)
            elif isinstance(item, tuple | list) and [type(part) for part in item] == [str, str]:
                question, answer = map(str, item)
                made.append(QuestionAnswer(question, answer))
            else:
                raise SteeringError(
                    f"{item!r} is no question-answer pair; give (question, answer), two strings."
                )
        return cls(tuple(made))


def describe_behaviour(
    model: TracedModel,
    oracle: Oracle | Sequence[Oracle],
    sentence: str,
    prompts: Sequence[Prompt],
    *,
    questions: Sequence[str] = QUESTIONS,
    layer: int,
    max_new_tokens: int = 32,
) -> Behaviour:
    """A behaviour from a sentence: what the oracle says of the target that was told the sentence.

    The sentence is the system prompt of each chat. Only what comes after it is read, so that the
    oracle answers about its effect and not about its words. Of each question the most frequent
    answer over the prompts is taken, and left out where the oracle gives it without the evidence
    too.

    Args:
        model: the target, without an adapter.
        oracle: what is asked; of several, the first.
        sentence: a system prompt, such as "Always talk about boats."
        prompts: chats without a system turn.
        questions: what is asked; use questions that the oracle knows.
        layer: what is read.
        max_new_tokens: of an answer.

    Raises:
        SteeringError: the sentence is empty, a prompt is no chat or has a system turn, or no answer
            is supported by the activations.
    """
    if not sentence.strip():
        raise SteeringError("The sentence is empty; write what the model shall be told.")
    asked, read = as_oracles(oracle)[0], []
    for prompt in prompts:
        chat = controlled(prompt, sentence)
        after = chat[-1]["role"] != "assistant"
        acts = model.activations(chat, layers=layer, add_generation_prompt=after)
        system = next((span for span in acts.messages if span.role == "system"), None)
        if system is None:
            raise SteeringError(
                "The chat template does not write a system turn, so the target cannot be told the "
                "sentence. Write the question-answer pairs yourself."
            )
        first = next(i for i, (begin, _) in enumerate(acts.offsets) if begin >= system.end)
        read.append(acts[first:])
    pairs = []
    for question in questions:
        answers = asked.ask(
            [question] * len(read),
            read,
            window="all",
            controls=["no_activation", "zero"],
            max_new_tokens=max_new_tokens,
        )
        supported = Counter(answer.text for answer in answers if answer.supported and answer.text)
        if supported:
            pairs.append(QuestionAnswer(question, supported.most_common(1)[0][0]))
    if not pairs:
        raise SteeringError(
            f"The oracle answers no question about {sentence!r} otherwise than it does without "
            "activations, so there are no pairs to steer by. Write the pairs yourself, or give "
            "questions that this oracle was trained on."
        )
    return Behaviour(tuple(pairs), sentence)


def controlled(prompt: Prompt, sentence: str) -> list[dict[str, str]]:
    """A chat with the sentence as its system prompt.

    Raises:
        SteeringError: the prompt is no chat, or has a system prompt.
    """
    turns: Any = prompt
    if isinstance(prompt, str) or not all(isinstance(turn, Mapping) for turn in turns):
        raise SteeringError(
            f"The prompt {prompt!r} is no chat, and a sentence is told in a system turn. Give "
            '[{"role": "user", "content": ...}].'
        )
    chat: list[dict[str, str]] = [dict(turn) for turn in turns]
    if chat and chat[0]["role"] == "system":
        raise SteeringError("The prompt has a system turn of its own; leave it out.")
    return [{"role": "system", "content": sentence}, *chat]
