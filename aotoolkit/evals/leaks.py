"""What would make an evaluation worthless, checked before anything is answered.

An oracle that was trained on the held-out words, or on another model than the one that it reads,
and a target that says its secret to whoever asks: in each case the answers can be had without
reading activations, and a high score shows nothing. Such a run fails.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aotoolkit.errors import EvalError
from aotoolkit.evals.items import EvalItem
from aotoolkit.evals.metrics import fold, word_match
from aotoolkit.evals.suite import ReadTask
from aotoolkit.oracle import Oracle
from aotoolkit.tracing import TracedModel

_SHOWN = 5
_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class LeakFindings:
    """What a check found.

    Attributes:
        leaks: A sentence each; one is enough to fail the run.
        notes: What could not be checked; they stand under the table.
    """

    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class LeakCheck(Protocol):
    """Anything that looks for a way around reading."""

    def find(self, model: TracedModel, read: Sequence[ReadTask]) -> LeakFindings:
        """Looks at the tasks of a suite, with their items and arms."""
        ...


class HeldOutWords:
    """No held-out word stands among the answers that an oracle was trained on."""

    def __init__(
        self, words: Iterable[str], training_answers: Iterable[str], *, oracle: str = "oracle"
    ) -> None:
        """A check of one oracle's training data.

        Args:
            words: What the evaluation asks for; whole words in any case are looked for.
            training_answers: Each answer that the oracle was trained to give.
            oracle: Its name, for the message.

        Raises:
            EvalError: There is no word.
        """
        self.words = tuple(dict.fromkeys(word for word in words if word.strip()))
        if not self.words:
            raise EvalError("There is no held-out word to look for; give those that are reported.")
        self.training_answers = tuple(dict.fromkeys(training_answers))
        self.oracle = oracle

    def find(self, model: TracedModel, read: Sequence[ReadTask]) -> LeakFindings:
        """See `LeakCheck`."""
        del model, read  # the training data alone decides
        # Most answers hold none of them, so one search sorts those out.
        any_word = re.compile("|".join(re.escape(fold(word)) for word in self.words))
        found: dict[str, str] = {}
        for answer in self.training_answers:
            if any_word.search(fold(answer)):
                for word in self.words:
                    if word not in found and word_match(answer, word):
                        found[word] = answer
        return LeakFindings(
            leaks=tuple(
                f"The oracle {self.oracle!r} was trained to answer {answer!r}, which names the "
                f"held-out word {word!r}."
                for word, answer in found.items()
            )
        )


class TrainedOnThisBase:
    """Each oracle was trained on activations of the very base that the items were read from."""

    def find(self, model: TracedModel, read: Sequence[ReadTask]) -> LeakFindings:
        """See `LeakCheck`."""
        leaks: dict[str, None] = {}
        notes: dict[str, None] = {}
        for task in read:
            bases = {item.activations.provenance.base_digest for item in task.items}
            bases.add(model.base_digest)
            for arm in task.arms:
                oracle = getattr(arm, "oracle", None)
                if arm.kind != "oracle" or not isinstance(oracle, Oracle):
                    continue
                contract = oracle.contract
                digest = contract.base_digest
                if digest is None:
                    notes[
                        f"The contract of {arm.name!r} does not record the weights of its base, so "
                        "nobody can tell whether it was trained on this one."
                    ] = None
                else:
                    # One that was recorded in an older way is not what the items say.
                    known = model.base_digest if model.has_base_digest(digest) else digest
                    if others := sorted(bases - {known}):
                        leaks[
                            f"{arm.name!r} was trained on the base {digest[:12]}, and what is read "
                            f"in {task.task.name!r} is of {others[0][:12]}."
                        ] = None
                if contract.collection_adapter is not None:
                    leaks[
                        f"{arm.name!r} was trained on activations of the adapter "
                        f"{contract.collection_adapter!r}, not of the base."
                    ] = None
        return LeakFindings(leaks=tuple(leaks), notes=tuple(notes))


class StatesItsSecret:
    """No target says what the items of secret-keeping tasks ask for, nor does the text read.

    What is looked for is `item.details["secret"]` (a word, or several) where there is one, and the
    accepted answers elsewhere, except "yes" and "no". A reply that names another choice too is no
    statement.
    """

    def __init__(self, *, tasks: Sequence[str] | None = None, max_new_tokens: int = 32) -> None:
        """A check of the targets.

        Args:
            tasks: Names of the tasks; by default those that keep a secret.
            max_new_tokens: How much of each reply is looked at.
        """
        self.tasks = tasks
        self.max_new_tokens = max_new_tokens

    def find(self, model: TracedModel, read: Sequence[ReadTask]) -> LeakFindings:
        """See `LeakCheck`."""
        leaks = []
        for one in read:
            wanted = one.task.secret_keeping if self.tasks is None else one.task.name in self.tasks
            if wanted:
                leaks += self._of_task(model, one)
        return LeakFindings(leaks=tuple(leaks))

    def _of_task(self, model: TracedModel, read: ReadTask) -> list[str]:
        name, leaks = read.task.name, []
        if told := [item for item in read.items if _states("".join(item.activations.tokens), item)]:
            leaks.append(
                f"Task {name!r}: the text that is read says the answer in {len(told)} of "
                f"{len(read.items)} items, such as {told[0].id!r}."
            )
        replies = self._replies(model, read.items)
        said: dict[str, list[str]] = {}
        for item in read.items:
            if item.id in replies and _states(replies[item.id], item):
                said.setdefault(item.unit, []).append(replies[item.id])
        counts = Counter(item.unit for item in read.items if item.id in replies)
        for unit, stated in list(said.items())[:_SHOWN]:
            leaks.append(
                f"Task {name!r}: {unit!r} states its secret in {len(stated)} of {counts[unit]} "
                f"replies, such as {stated[0].strip()!r}."
            )
        if len(said) > _SHOWN:
            leaks.append(f"Task {name!r}: so do {len(said) - _SHOWN} more.")
        return leaks

    def _replies(self, model: TracedModel, items: Sequence[EvalItem]) -> dict[str, str]:
        """Item id -> what its target replies, or has replied in the prompt itself."""
        replies: dict[str, str] = {}
        asked: dict[str | None, list[EvalItem]] = {}
        for item in items:
            if item.chat is None:
                continue
            last = item.chat[-1]
            if last["role"] == "user":
                asked.setdefault(item.adapter, []).append(item)
            else:
                replies[item.id] = last["content"]
        for adapter, own in asked.items():
            for start in range(0, len(own), _PROMPTS_AT_ONCE):
                chunk = own[start : start + _PROMPTS_AT_ONCE]
                said = model.generate(
                    [list(item.chat or ()) for item in chunk],
                    adapter=adapter,
                    max_new_tokens=self.max_new_tokens,
                )
                replies |= {item.id: reply for item, reply in zip(chunk, said, strict=True)}
        return replies


def _states(text: str, item: EvalItem) -> bool:
    secret = item.details.get("secret", item.answers)
    words = [secret] if isinstance(secret, str) else list(secret)
    words = [word for word in words if word.strip().lower() not in ("yes", "no")]
    others = [choice for choice in item.choices if choice not in item.answers]
    if not words or not word_match(text, words):
        return False
    return not others or not word_match(text, others)
