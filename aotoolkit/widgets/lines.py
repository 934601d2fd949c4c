"""Prompts, questions and question-answer pairs as lines of a text area.

Most are one line of plain text, and are written so. One that holds a line break, or would be read
as something else, is written as JSON, which has an escape for line breaks: so nothing that a panel
is given is split or changed, and whatever it can be given can be typed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aotoolkit.errors import PromptError, QuestionError, SteeringError

if TYPE_CHECKING:
    from aotoolkit.steering import QuestionAnswer
    from aotoolkit.tracing.encoding import Message

ARROW = "=>"
_JSON = ('["', "[{")


def prompts_text(prompts: "Iterable[str | Sequence[Message]]") -> str:
    """One line for each prompt or question: the text, or the only user turn; else JSON."""
    return "\n".join(map(_prompt_line, prompts))


def prompts_of(text: str) -> "list[str | list[Message]]":
    """What `prompts_text` wrote, or a user did: texts, and chats; empty lines are left out.

    Raises:
        PromptError: A line begins as JSON does and is no prompt.
    """
    found: list[str | list[Message]] = []
    for number, line in _lines(text):
        if not line.startswith(_JSON):
            found.append(line)
            continue
        value = _json(line)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            found.append(value[0])
        elif _is_chat(value):
            found.append(value)
        else:
            raise PromptError(
                f"Line {number} of the prompts begins as JSON does, but is no chat such as "
                '[{"role": "user", "content": "Hello."}], and no text such as ["Hello."].'
            )
    return found


def questions_of(text: str) -> list[str]:
    """What `prompts_text` wrote of questions, or a user did; empty lines are left out.

    Raises:
        QuestionError: A line begins as JSON does and is no question.
    """
    found = []
    for number, line in _lines(text):
        value = _json(line) if line.startswith(_JSON) else [line]
        if not isinstance(value, list) or [type(part) for part in value] != [str]:
            raise QuestionError(
                f"Line {number} of the questions begins as JSON does, but is no text such as "
                '["What is it?"].'
            )
        found += value
    return found


def pairs_text(pairs: "Iterable[QuestionAnswer]") -> str:
    """One line for each pair: `question => answer`."""
    return "\n".join(map(_pair_line, pairs))


def pairs_of(text: str) -> list[tuple[str, str]]:
    """What `pairs_text` wrote, or a user did; empty lines are left out.

    Raises:
        SteeringError: A line is no pair.
    """
    found = []
    for number, line in _lines(text):
        if line.startswith(_JSON):
            value = _json(line)
            ok = isinstance(value, list) and [type(part) for part in value] == [str, str]
            question, answer = value if ok else ("", "")
        else:
            question, ok, answer = line.partition(ARROW)
            question, answer = question.strip(), answer.strip()
        if not (ok and question.strip() and answer.strip()):
            raise SteeringError(
                f"Line {number} of the pairs is no question with an answer. Write it as "
                f"What is the secret word? {ARROW} The tiger."
            )
        found.append((question, answer))
    return found


def _prompt_line(prompt: "str | Sequence[Message]") -> str:
    if isinstance(prompt, str):
        return prompt if _is_one_line(prompt) else _written([prompt])
    turns = [dict(turn) for turn in prompt]
    if [turn.keys() for turn in turns] == [{"role", "content"}] and turns[0]["role"] == "user":
        return _prompt_line(str(turns[0]["content"]))
    return _written(turns)


def _pair_line(pair: "QuestionAnswer") -> str:
    plain = _is_one_line(pair.question) and _is_one_line(pair.answer)
    if plain and ARROW not in pair.question:
        return f"{pair.question} {ARROW} {pair.answer}"
    return _written([pair.question, pair.answer])


def _is_one_line(text: str) -> bool:
    plain = bool(text) and text == text.strip() and not text.startswith(_JSON)
    return plain and not set("\n\r") & set(text)


def _lines(text: str) -> list[tuple[int, str]]:
    """Numbers, from 1 on, and texts of the lines that are not empty."""
    # Not `splitlines`: it splits at characters that a text area shows within a line.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None  # which is neither a prompt nor a pair


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in value
    )
