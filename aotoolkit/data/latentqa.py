"""LatentQA data: questions about how an assistant was told to behave (arXiv 2412.08686).

The published files are lists of chats in four kinds, each entry with a `label` that names the
behaviour, and `qa.json`, which has the questions and answers of each label. A user's turn (the
*control*) or a system prompt says how to behave; what is read comes after it, so that an answer
must come from what the model made of the control and not from its words. A fifth kind in the same
form, `system_completion`, has what was replied under a system prompt; `make_latentqa` writes it.

The field `control_thought`/`stimulus_thought` (the reasoning of the model that wrote the data) is
not used, as in the reference implementations.
"""

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from aotoolkit.data.context import encode_context, is_text, turn_start
from aotoolkit.data.example import Example
from aotoolkit.data.source import LayerChoice, group_rng
from aotoolkit.data.window import FEW_TOKENS, Window, check_share
from aotoolkit.errors import DataError

Kind = Literal["control", "stimulus", "stimulus_completion", "system", "system_completion"]


@dataclass(frozen=True)
class Form:
    """How the entries of a file become a chat."""

    turns: tuple[tuple[str, str], ...]  # role and field of each turn
    masked_turns: int  # how many of the first turns are never read


FORMS: dict[Kind, Form] = {
    "control": Form((("user", "control_user"),), 0),
    "stimulus": Form(
        (("user", "control_user"), ("assistant", "control_model"), ("user", "stimulus_user")), 2
    ),
    "stimulus_completion": Form(
        (
            ("user", "control_user"),
            ("assistant", "control_model"),
            ("user", "stimulus_user"),
            ("assistant", "stimulus_model"),
        ),
        2,
    ),
    "system": Form((("system", "system"), ("user", "stimulus_user")), 1),
    "system_completion": Form(
        (("system", "system"), ("user", "stimulus_user"), ("assistant", "stimulus_model")), 1
    ),
}


@dataclass(frozen=True, slots=True)
class LatentQAItem:
    """A chat and the questions about it.

    Attributes:
        label: the behaviour; items of one label share their questions and answers.
        kind: the file that it stands in.
        messages: the chat, as the target model sees it.
        masked_turns: how many of its first turns, which give the behaviour away, are not read.
        qa: questions with their answers.
    """

    label: str
    kind: Kind
    messages: tuple[Mapping[str, str], ...]
    masked_turns: int
    qa: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LatentQAData:
    """What `load_latentqa` found.

    Attributes:
        items: in the order of the files.
        left_out: kind -> labels without questions and answers, whose entries were left out.
        unused: labels with questions and answers of which no file has an entry.
        digest: SHA-256 of the items.
    """

    items: tuple[LatentQAItem, ...]
    left_out: Mapping[Kind, tuple[str, ...]]
    unused: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        """Pairs of an item and one of its questions."""
        return sum(len(item.qa) for item in self.items)

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> number of items."""
        return dict(Counter(item.kind for item in self.items))

    @property
    def digest(self) -> str:
        """SHA-256 of the items."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps([item.label, item.messages, item.qa]).encode() + b"\n")
        return digest.hexdigest()


def load_latentqa(
    folder: str | os.PathLike[str],
    *,
    kinds: Sequence[Kind] | None = None,
    incomplete: Literal["error", "leave_out"] = "error",
) -> LatentQAData:
    """Read the published files and join them on `label`.

    A label that a file has n times gives n items; each file must have all of its labels equally
    often, so that no behaviour is trained on more than another.

    Args:
        folder: with `qa.json` and at least one of control.json, stimulus.json,
            stimulus_completion.json, system.json and system_completion.json.
        kinds: which of those to take; default: all that are there. The Activation Oracles' mixture
            is without `system`.
        incomplete: what becomes of entries whose label has no questions, and of files with unequal
            counts of their labels: "error"; or "leave_out", which leaves out the former and keeps
            the latter.

    Raises:
        DataError: a file that is absent or not in the published format, or what `incomplete` says.
    """
    path = Path(folder)
    if incomplete not in ("error", "leave_out"):
        raise DataError(f"incomplete is {incomplete!r}; give 'error' or 'leave_out'.")
    if not path.is_dir():
        raise DataError(f"There is no folder {path}. LatentQA data is a folder with qa.json.")
    for kind in kinds or ():
        if kind not in get_args(Kind):
            raise DataError(f"Kind {kind!r} is unknown. Give some of {get_args(Kind)}.")
    there = [kind for kind in get_args(Kind) if (path / f"{kind}.json").is_file()]
    wanted = list(dict.fromkeys(kinds)) if kinds is not None else there
    missing = [kind for kind in wanted if kind not in there]
    if missing or not wanted:
        absent = ", ".join(f"{kind}.json" for kind in missing or get_args(Kind))
        raise DataError(
            f"{path} has no {absent}. It has: "
            f"{', '.join(sorted(file.name for file in path.glob('*.json'))) or 'no .json file'}."
        )
    qa = _read_qa(path / "qa.json")
    items: list[LatentQAItem] = []
    left_out: dict[Kind, tuple[str, ...]] = {}
    problems: list[str] = []
    for kind in wanted:
        entries = _read_entries(path / f"{kind}.json", kind)
        counts = Counter(label for label, _ in entries)
        without = tuple(label for label in counts if label not in qa)
        if without:
            left_out[kind] = without
            problems.append(
                f"{len(without)} of {len(counts)} labels of {kind}.json are not in qa.json "
                f"({_some(without)})"
            )
        if len(set(counts.values())) > 1:
            usual = Counter(counts.values()).most_common(1)[0][0]
            odd = [f"{label} {count} times" for label, count in counts.items() if count != usual]
            problems.append(
                f"the labels of {kind}.json are not there equally often: most of them {usual} "
                f"times, but {_some(odd)}"
            )
        items += [
            LatentQAItem(label, kind, messages, FORMS[kind].masked_turns, qa[label])
            for label, messages in entries
            if label in qa
        ]
    if problems and incomplete == "error":
        raise DataError(
            f"The files in {path} do not fit together: {'; '.join(problems)}. Complete them, or "
            'leave out what has no questions and keep the counts with incomplete="leave_out".'
        )
    if not items:
        raise DataError(f"No label of {_some(wanted)} in {path} has questions in qa.json.")
    used = {item.label for item in items}
    unused = tuple(label for label in qa if label not in used)
    return LatentQAData(tuple(items), left_out, unused)


@dataclass(frozen=True, kw_only=True)
class LatentQA:
    """Questions about the behaviour an assistant was told to have, from later turns alone.

    A `Source`. As in the Activation Oracles' mixture (arXiv 2512.15674): in half of the examples
    all positions after the masked turns are read, in the others a few near the end.

    Attributes:
        name: unique in a mixture.
        data: from `load_latentqa`.
        tokenizer: the target model's, with a chat template.
        layers: which layers an example reads.
        window: the positions read where not all are.
        full_share: share of the examples in which all positions are read, in expectation.

    Raises:
        ChatTemplateError: the tokenizer has no chat template.
        DataError: `full_share` is not between 0 and 1.
    """

    name: str
    data: LatentQAData
    tokenizer: PreTrainedTokenizerBase
    layers: LayerChoice
    window: Window = FEW_TOKENS
    full_share: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.name, self.full_share)
        self.readable(self.data.items[0])  # a template that cannot render it fails here

    def readable(self, item: LatentQAItem) -> tuple[tuple[int, ...], range]:
        """The token ids of an item's chat, and the positions after its masked turns."""
        prompted = item.messages[-1]["role"] == "user"
        context = encode_context(self.tokenizer, item.messages, add_generation_prompt=prompted)
        start = turn_start(
            self.tokenizer, item.messages, item.masked_turns, add_generation_prompt=prompted
        )
        return context.token_ids, range(context.first_from(start), len(context))

    def groups(self, seed: int) -> Iterator[list[Example]]:
        """For each item the examples with its questions."""
        order = list(range(len(self.data.items)))
        random.Random(f"{seed}/{self.name}/order").shuffle(order)
        for index in order:
            item = self.data.items[index]
            rng = group_rng(seed, self.name, index)
            token_ids, readable = self.readable(item)
            examples = []
            for question, answer in item.qa:
                full = rng.random() < self.full_share
                window = self.window.draw(rng, readable.start, readable.stop)
                for layers in self.layers.draw(rng):
                    examples.append(
                        Example(
                            context_ids=token_ids,
                            positions=tuple(readable if full else window),
                            layers=layers,
                            question=question,
                            answer=answer,
                            source=self.name,
                            group=item.label,
                        )
                    )
            yield examples

    def describe(self) -> dict[str, object]:
        """The data, what of it was left out, and the settings."""
        return {
            "kind": "latentqa",
            "name": self.name,
            "digest": self.data.digest,
            "items": self.data.counts,
            "questions": self.data.num_examples,
            "labels": len({item.label for item in self.data.items}),
            "labels_left_out": {kind: len(left) for kind, left in self.data.left_out.items()},
            "labels_unused": len(self.data.unused),
            "layers": asdict(self.layers),
            "window": asdict(self.window),
            "full_share": self.full_share,
        }


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a key that stands twice, of which json would keep the last."""
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise DataError(f"the same key stands there more than once: {_some(repeated)}")
    return dict(pairs)


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON in UTF-8: {error}.") from error
    except DataError as error:
        raise DataError(f"In {path} {error}. Merge or rename the entries.") from error


def _read_qa(path: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    content = _read_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}; expected an object, label -> list of "
            "[question, answer]."
        )
    qa: dict[str, tuple[tuple[str, str], ...]] = {}
    for label, pairs in content.items():
        if not isinstance(pairs, list) or not pairs:
            raise DataError(f"{path}, label {label!r}: expected a list of [question, answer].")
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and all(map(is_text, pair))):
                raise DataError(
                    f"{path}, label {label!r}: {str(pair)[:80]} is not [question, answer], two "
                    "texts that are not empty."
                )
        qa[label] = tuple((question, answer) for question, answer in pairs)
    return qa


def _read_entries(path: Path, kind: Kind) -> list[tuple[str, tuple[Mapping[str, str], ...]]]:
    content = _read_json(path)
    if not isinstance(content, list) or not content:
        raise DataError(
            f"{path} holds {'no entry' if content == [] else type(content).__name__}; expected a "
            "list of objects."
        )
    fields = ["label", *(field for _, field in FORMS[kind].turns)]
    entries = []
    for number, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise DataError(f"{path}, entry {number} is no object but {str(entry)[:80]!r}.")
        for field in fields:
            if not is_text(entry.get(field)):
                raise DataError(
                    f"{path}, entry {number} (label {entry.get('label')!r}): the field {field!r} "
                    f"is {entry.get(field)!r}; expected text. Fields needed: {', '.join(fields)}."
                )
        messages = tuple(
            {"role": role, "content": entry[field]} for role, field in FORMS[kind].turns
        )
        entries.append((entry["label"], messages))
    return entries
