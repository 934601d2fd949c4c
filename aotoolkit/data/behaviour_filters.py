"""What is left out of LatentQA data that was made, and why: one name for each reason.

The filters are about what an oracle could learn otherwise than by reading activations: words of the
behaviour in the turns that are read, a question that gives its answer away, an answer that says
nothing about the behaviour.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aotoolkit.data.behaviour_questions import Pair
from aotoolkit.data.behaviours import LatentQABehaviour, normalised, words
from aotoolkit.data.context import is_text

# Reason -> what it means, in the order in which they are looked at.
REASONS: Mapping[str, str] = {
    "duplicate_behaviour": "the same sentence stood there before",
    "duplicate_stimulus": "the same stimulus stood there before",
    "prompt_too_long": "the chat has more tokens than max_prompt_tokens",
    "empty_reply": "the model replied nothing, or no text",
    "unfinished_reply": "the model did not end within max_new_tokens",
    "behaviour_in_dialogue": "a run of the behaviour's words stands in the turns that are read",
    "hidden_field_in_dialogue": "the value of a hidden field stands in the turns that are read",
    "duplicate_reply": "the model replied the same to another stimulus of this behaviour",
    "over_limit": "this behaviour has num_dialogues of them, or num_questions, already",
    "unreadable_pair": "the writer did not write a question and an answer",
    "behaviour_in_question": "the question gives the behaviour, or a hidden field, away",
    "answer_without_behaviour": "the answer shares no word with the behaviour",
    "answer_too_long": "the answer has more words than max_answer_words",
    "duplicate_question": "the same question and answer stood there before",
    "too_few_dialogues": "a behaviour with fewer than num_dialogues of one kind, which it lacks",
    "no_questions": "a behaviour without questions, which is left out",
    "no_dialogues": "a behaviour without a dialogue of any kind, which is left out",
}

# Words that say nothing about a behaviour: English function words, and those of the genre.
_COMMON_WORDS = (
    "a an the of to in on and or nor but is are be been being was were am as at by for from with "
    "without within into onto about over under than then so such this that these those there it "
    "its itself you your yours yourself they their them he she his her him i me my we our us what "
    "how who which when where why if do does did done not no yes can could may might must shall "
    "should will would have has had any all each every some most more less very also only just "
    "please make sure try effort always never assistant model ai user users reply replies response "
    "responses respond message messages answer answers instruction instructions told behave "
    "behaviour behavior"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_STEM = 5


@dataclass(frozen=True, kw_only=True)
class LatentQAFilters:
    """What must hold of dialogues, questions and answers.

    Attributes:
        leak_words: a run of so many words of the behaviour, or all of a shorter one, must not
            stand in what is read, nor in a question.
        hidden_fields: fields of a behaviour whose value must not stand there either.
        answers_name_behaviour: an answer must share a word with the behaviour or its fields,
            function words and endings aside.
        max_answer_words: longest answer.
    """

    leak_words: int = 6
    hidden_fields: tuple[str, ...] = ()
    answers_name_behaviour: bool = True
    max_answer_words: int = 100

    def leak(self, behaviour: LatentQABehaviour, texts: Iterable[str]) -> str | None:
        """Why texts give a behaviour away; None where they do not."""
        read = [_spaced(text) for text in texts]
        said = words(behaviour.sentence)
        length = min(self.leak_words, len(said))
        runs = [
            _spaced(" ".join(said[start : start + length]))
            for start in range(len(said) - length + 1)
        ]
        if said and any(run in text for run in runs for text in read):
            return "behaviour_in_dialogue"
        hidden = [behaviour.fields.get(name, "") for name in self.hidden_fields]
        if any(_spaced(value) in text for value in hidden if value for text in read):
            return "hidden_field_in_dialogue"
        return None

    def pairs(
        self, behaviour: LatentQABehaviour, pairs: Sequence[Pair], dropped: Counter[str]
    ) -> list[Pair]:
        """The pairs that may stand there; counts the others."""
        kept: dict[str, Pair] = {}
        for question, answer in pairs:
            reason = self._refused(behaviour, question, answer)
            if reason is None and normalised(f"{question} {answer}") in kept:
                reason = "duplicate_question"
            if reason is None:
                kept[normalised(f"{question} {answer}")] = (question, answer)
            else:
                dropped[reason] += 1
        return list(kept.values())

    def _refused(self, behaviour: LatentQABehaviour, question: str, answer: str) -> str | None:
        if self.leak(behaviour, [question]):
            return "behaviour_in_question"
        if len(answer.split()) > self.max_answer_words:
            return "answer_too_long"
        known = _stems(" ".join([behaviour.sentence, *behaviour.fields.values()]))
        if self.answers_name_behaviour and known and not known & _stems(answer):
            return "answer_without_behaviour"
        return None


def bad_reply(reply: str, *, finished: bool) -> str | None:
    """Why a reply is none that a dialogue can hold."""
    if not is_text(reply):
        return "empty_reply"
    return None if finished else "unfinished_reply"


def _spaced(text: str) -> str:
    """Words between spaces, so that a word is found and no part of one."""
    return f" {normalised(text)} "


def _stems(text: str) -> set[str]:
    """Beginnings of the words that carry meaning."""
    return {word[:_STEM] for word in words(text) if word not in _COMMON}
