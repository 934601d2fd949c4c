"""Makes LatentQA data for any model: dialogues that it writes itself under behaviours.

The published data (arXiv 2412.08686) was written by another model than those that read it. What a
target says of itself under a behaviour is closer to what its activations hold, and is had for any
model without a service: the target is told each behaviour and replies to stimuli, questions and
answers come from templates or from a model that writes them, what gives a behaviour away is left
out, and the rest is written in the published form, as a training and a validation folder.

    raw/           all that models wrote; a run that was stopped goes on there, and other filters
                   are applied to it without a model
    train/         control.json, stimulus.json, ... and qa.json, for `load_latentqa`
    validation/    the same for other behaviours
    provenance.json
"""

import hashlib
import itertools
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import aotoolkit
from aotoolkit.atomic import replacing
from aotoolkit.data.behaviour_filters import LatentQAFilters, bad_reply
from aotoolkit.data.behaviour_questions import (
    Pair,
    filled,
    from_templates,
    read_written,
    writer_ids,
    writer_prompts,
)
from aotoolkit.data.behaviours import (
    LatentQABehaviour,
    behaviours_digest,
    normalised,
)
from aotoolkit.data.latentqa import FORMS, Kind, load_latentqa
from aotoolkit.data.latentqa_request import LatentQARequest
from aotoolkit.data.model_texts import decode, sample_ids, write_in_batches
from aotoolkit.data.source import file_digest, group_rng
from aotoolkit.errors import ChatTemplateError, DataError, PromptError
from aotoolkit.tracing.digest import tokenizer_digest
from aotoolkit.tracing.encoding import Message, render_chat
from aotoolkit.tracing.model import TracedModel

PROVENANCE_FILE = "provenance.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class MadeLatentQA:
    """What `make_latentqa` wrote.

    Attributes:
        folder: with `train`, `validation` and `provenance.json`.
        counts: split -> kind -> number of dialogues; of a split without any, nothing.
        questions: split -> number of questions with answers.
        behaviours: split -> number of behaviours.
        dropped: reason -> how many of what it is about were left out; see
            `behaviour_filters.REASONS`.
    """

    folder: Path
    counts: Mapping[str, Mapping[str, int]]
    questions: Mapping[str, int]
    behaviours: Mapping[str, int]
    dropped: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Turn:
    """A reply that is asked for: of which behaviour and stimulus, and after which chat."""

    behaviour: LatentQABehaviour
    stimulus: str
    messages: tuple[Message, ...]


# (label, stimulus) -> what the model replied, and whether it ended by itself.
_Replies = Mapping[tuple[str, str], tuple[str, bool]]
# kind -> label -> entries of its file
_Entries = Mapping[Kind, Mapping[str, list[dict[str, str]]]]


def make_latentqa(
    model: TracedModel,
    request: LatentQARequest,
    folder: str | os.PathLike[str],
    *,
    writer: TracedModel | None = None,
    progress: bool = True,
) -> MadeLatentQA:
    """Lets a model write LatentQA data about behaviours (arXiv 2412.08686), and filters it.

    A call that was stopped goes on where it was, at the last whole batch, and writes what an
    unbroken one does. Called again with other filters, templates or another `validation_share`,
    nothing is generated anew.

    Args:
        model: the target, its base, every adapter off: it writes the dialogues.
        request: what is asked for.
        folder: where everything goes.
        writer: any causal LM, with or without a chat template, which writes questions and answers
            instead of the templates; the target itself may be given.
        progress: show bars.

    Returns:
        What was written and what was left out; `folder/provenance.json` says the same and by which
        model, from which settings.

    Raises:
        DataError: the folder holds what was written with other settings, the target's template
            cannot render a kind's chats, its context is too short, or nothing is left after
            filtering.
        ChatTemplateError: the target has no chat template.
    """
    root = Path(folder)
    _check(model, request)
    if writer is None:
        # A slot without a field is known before hours of writing.
        for behaviour in request.distinct_behaviours:
            for template in itertools.chain.from_iterable(request.templates):
                if not behaviour.qa:
                    filled(template, behaviour)
    raw = root / "raw"
    replies = _dialogues(model, request, raw, progress=progress)
    written = None
    if writer is not None:
        written = _written_pairs(writer, request, raw, progress=progress)
    dropped = Counter(
        duplicate_behaviour=len(request.behaviours) - len(request.distinct_behaviours),
        duplicate_stimulus=len(request.stimuli) - len(request.distinct_stimuli),
    )
    entries = _entries(model, request, replies, dropped)
    qa = _questions(request, written, dropped)
    kept = []
    for behaviour in request.distinct_behaviours:
        if not any(behaviour.label in of_kind for of_kind in entries.values()):
            dropped["no_dialogues"] += 1
        elif behaviour.label not in qa:
            dropped["no_questions"] += 1
        else:
            kept.append(behaviour)
    dropped = +dropped
    if not kept:
        raise DataError(
            f"No behaviour is left: {_said(dropped)}. {root / 'raw'} has what the model wrote; "
            "loosen the filters, or raise max_new_tokens or spare_dialogues."
        )
    (root / PROVENANCE_FILE).unlink(missing_ok=True)  # until the folders are whole again
    counts: dict[str, Mapping[str, int]] = {}
    questions: dict[str, int] = {}
    behaviours: dict[str, int] = {}
    digests: dict[str, str] = {}
    for split, own in zip(SPLITS, _split(request, kept), strict=True):
        labels = [behaviour.label for behaviour in own]
        files = _write_split(root / split, labels, entries, qa)
        if labels:
            data = load_latentqa(root / split)
            counts[split] = data.counts
            questions[split] = sum(len(qa[label]) for label in labels)
            behaviours[split] = len(labels)
        digests |= {f"{split}/{path.name}": file_digest(path) for path in files}
    made = MadeLatentQA(
        folder=root,
        counts=counts,
        questions=questions,
        behaviours=behaviours,
        dropped=dict(dropped),
    )
    report = {
        "aotoolkit_version": aotoolkit.__version__,
        "model": _described(model),
        "writer": None if writer is None else _described(writer),
        "seed": request.seed,
        "settings": _settings(request, model)
        | {
            "num_dialogues": request.num_dialogues,
            "num_questions": request.num_questions,
            "validation_share": request.validation_share,
            "filters": asdict(request.filters),
            "templates": None if writer is not None else list(request.templates),
        },
        **{name: value for name, value in made.to_dict().items() if name != "folder"},
        "files": digests,
    }
    _write_json(root / PROVENANCE_FILE, report)
    return made


def _check(model: TracedModel, request: LatentQARequest) -> None:
    """Refuses, before anything is written, what the template or the context has no room for."""
    longest = max(1, request.longest_chat(model)) + request.max_new_tokens
    limit = model.context_length
    if limit is not None and longest > limit:
        raise DataError(
            f"A chat and {request.max_new_tokens} new tokens may have {longest} tokens, but the "
            f"context of {model.name} is {limit}. Lower max_prompt_tokens or max_new_tokens."
        )
    sentence = request.distinct_behaviours[0].sentence.strip()  # as some templates do
    for kind in request.kinds:
        chat = [{"role": role, "content": sentence} for role, _ in FORMS[kind].turns]
        try:
            text = render_chat(
                model.tokenizer,
                chat,
                add_generation_prompt=chat[-1]["role"] == "user",
                chat_template_kwargs=request.template_kwargs(),
            )
        except ChatTemplateError:
            raise
        except PromptError as error:
            raise DataError(f"Leave {kind!r} out of kinds: {error}") from error
        if text.count(sentence) < len(chat):
            raise DataError(
                f"The chat template of {model.name} leaves out a turn of {kind} chats "
                f"({', '.join(turn['role'] for turn in chat)}). Leave {kind!r} out of kinds."
            )


def _dialogues(
    model: TracedModel, request: LatentQARequest, raw: Path, *, progress: bool
) -> dict[str, _Replies]:
    """Field of a reply -> the replies that the kinds asked for need."""

    def ask(name: str, prompts: Any) -> _Replies:
        return _reply(model, request, raw / f"{name}.jsonl", prompts, progress=progress)

    replies: dict[str, _Replies] = {}
    if {"stimulus", "stimulus_completion"} & set(request.kinds):
        replies["control"] = control = ask("control_replies", lambda: _first_turns(request, "user"))
        if "stimulus_completion" in request.kinds:
            replies["stimulus_completion"] = ask(
                "stimulus_replies", lambda: _second_turns(request, control)
            )
    if "system_completion" in request.kinds:
        replies["system_completion"] = ask(
            "system_replies", lambda: _first_turns(request, "system")
        )
    return replies


def _first_turns(request: LatentQARequest, role: str) -> Iterator[_Turn]:
    """The behaviour alone as a user's turn, or as a system prompt with the stimulus after it."""
    for behaviour in request.distinct_behaviours:
        told = {"role": role, "content": behaviour.sentence}
        for stimulus in request.drawn_stimuli(behaviour):
            turns = (told,) if role == "user" else (told, {"role": "user", "content": stimulus})
            yield _Turn(behaviour, stimulus, turns)


def _second_turns(request: LatentQARequest, control: _Replies) -> Iterator[_Turn]:
    """The behaviour, what the model said to it, and the stimulus."""
    for first in _first_turns(request, "user"):
        reply, finished = control.get((first.behaviour.label, first.stimulus), ("", False))
        if bad_reply(reply, finished=finished) is None:
            turns = (
                *first.messages,
                {"role": "assistant", "content": reply},
                {"role": "user", "content": first.stimulus},
            )
            yield _Turn(first.behaviour, first.stimulus, turns)


def _reply(
    model: TracedModel,
    request: LatentQARequest,
    path: Path,
    turns: Any,
    *,
    progress: bool,
) -> _Replies:
    """Replies to the chats of `turns` that are not too long, from the file where it is there."""
    longest = request.longest_chat(model)

    def prompts() -> list[tuple[_Turn, tuple[int, ...]]]:
        encoded = ((turn, _chat_ids(model, request, turn.messages)) for turn in turns())
        return [(turn, ids) for turn, ids in encoded if len(ids) <= longest]

    def write(
        start: int, batch: Sequence[tuple[_Turn, tuple[int, ...]]]
    ) -> Iterator[dict[str, Any]]:
        generators = [group_rng(request.seed, path.stem, start + row) for row in range(len(batch))]
        new = sample_ids(
            model,
            [ids for _, ids in batch],
            generators,
            temperature=request.temperature,
            max_new_tokens=request.max_new_tokens,
        )
        for (turn, _), (ids, finished) in zip(batch, new, strict=True):
            yield {
                "label": turn.behaviour.label,
                "stimulus": turn.stimulus,
                "reply": decode(model, ids).strip(),
                "finished": finished,
            }

    write_in_batches(
        path,
        prompts,
        write,
        settings=_settings(request, model),
        batch_size=request.batch_size,
        progress=progress,
    )
    return {(row["label"], row["stimulus"]): (row["reply"], row["finished"]) for row in _rows(path)}


def _written_pairs(
    writer: TracedModel, request: LatentQARequest, raw: Path, *, progress: bool
) -> dict[str, list[Pair | None]]:
    """Label -> what the writer wrote about it; None where that is no pair."""
    path = raw / "questions.jsonl"

    def prompts() -> list[tuple[LatentQABehaviour, str]]:
        # Twice as many as are asked for, since some are left out.
        return list(writer_prompts(request.distinct_behaviours, 2 * request.num_questions))

    def write(start: int, batch: Sequence[tuple[LatentQABehaviour, str]]) -> Iterator[dict]:
        ids = [writer_ids(writer.tokenizer, behaviour, aspect) for behaviour, aspect in batch]
        limit = writer.context_length
        longest = max(map(len, ids)) + request.max_new_tokens
        if limit is not None and longest > limit:
            raise DataError(
                f"What the writer is asked and its {request.max_new_tokens} new tokens have "
                f"{longest} tokens, but its context is {limit}. Shorten the behaviours, lower "
                "max_new_tokens, or give another writer."
            )
        new = sample_ids(
            writer,
            ids,
            [group_rng(request.seed, "questions", start + row) for row in range(len(batch))],
            temperature=request.temperature,
            max_new_tokens=request.max_new_tokens,
        )
        for (behaviour, aspect), (reply, _) in zip(batch, new, strict=True):
            yield {"label": behaviour.label, "aspect": aspect, "reply": decode(writer, reply)}

    settings = {
        "model": writer.name,
        "base_digest": writer.base_digest,
        "behaviours": behaviours_digest(request.distinct_behaviours),
        "num_questions": request.num_questions,
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "batch_size": request.batch_size,
    }
    write_in_batches(
        path,
        prompts,
        write,
        settings=settings,
        batch_size=request.batch_size,
        progress=progress,
    )
    found: defaultdict[str, list[Pair | None]] = defaultdict(list)
    for row in _rows(path):
        found[row["label"]].append(read_written(row["reply"], writer.tokenizer))
    return found


def _chat_ids(
    model: TracedModel, request: LatentQARequest, messages: Sequence[Message]
) -> tuple[int, ...]:
    text = render_chat(
        model.tokenizer,
        messages,
        add_generation_prompt=True,
        chat_template_kwargs=request.template_kwargs(),
    )
    ids: Any = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(ids)


def _entries(
    model: TracedModel,
    request: LatentQARequest,
    replies: Mapping[str, _Replies],
    dropped: Counter[str],
) -> _Entries:
    """The entries of each file that pass the filters, equally many for each of its labels."""
    entries: dict[Kind, dict[str, list[dict[str, str]]]] = {kind: {} for kind in request.kinds}

    longest = request.longest_chat(model)

    def fits(chat: Sequence[Message]) -> bool:
        return len(_chat_ids(model, request, chat)) <= longest

    for behaviour in request.distinct_behaviours:
        for kind in request.kinds:
            if kind == "control":
                if fits([{"role": "user", "content": behaviour.sentence}]):
                    entry = {"label": behaviour.label, "control_user": behaviour.sentence}
                    entries[kind][behaviour.label] = [entry]
                else:
                    dropped["prompt_too_long"] += 1
                continue
            good: list[dict[str, str]] = []
            said: set[str] = set()
            for stimulus in request.drawn_stimuli(behaviour):
                entry, reason = _entry(kind, behaviour, stimulus, replies, request.filters)
                if kind == "system" and not fits(
                    [{"role": role, "content": entry[name]} for role, name in FORMS[kind].turns]
                ):
                    reason = "prompt_too_long"
                reply = normalised(entry.get("stimulus_model", ""))
                if reason is None and reply and reply in said:
                    reason = "duplicate_reply"
                if reason is None and len(good) == request.num_dialogues:
                    reason = "over_limit"
                if reason is None:
                    good.append(entry)
                    said.add(reply)
                else:
                    dropped[reason] += 1
            if len(good) == request.num_dialogues:
                entries[kind][behaviour.label] = good
            else:
                dropped["too_few_dialogues"] += 1
    return entries


def _entry(
    kind: Kind,
    behaviour: LatentQABehaviour,
    stimulus: str,
    replies: Mapping[str, _Replies],
    filters: LatentQAFilters,
) -> tuple[dict[str, str], str | None]:
    """An entry of a file, and why it is not to stand there."""
    told = "control_user" if kind.startswith("stimulus") else "system"
    entry = {"label": behaviour.label, told: behaviour.sentence, "stimulus_user": stimulus}
    needed = {
        "stimulus": {"control_model": "control"},
        "stimulus_completion": {"control_model": "control", "stimulus_model": kind},
        "system": {},
        "system_completion": {"stimulus_model": kind},
    }[kind]
    for name, source in needed.items():
        if (behaviour.label, stimulus) not in replies[source]:
            return entry, "prompt_too_long"
        reply, finished = replies[source][behaviour.label, stimulus]
        if reason := bad_reply(reply, finished=finished):
            return entry, reason
        entry[name] = reply
    read = [entry[name] for name in ("stimulus_user", "stimulus_model") if name in entry]
    return entry, filters.leak(behaviour, read)


def _questions(
    request: LatentQARequest,
    written: Mapping[str, list[Pair | None]] | None,
    dropped: Counter[str],
) -> dict[str, list[Pair]]:
    """Label -> the pairs that pass the filters; a label without any is not there."""
    qa: dict[str, list[Pair]] = {}
    for behaviour in request.distinct_behaviours:
        if behaviour.qa:
            pairs = list(behaviour.qa)
        elif written is None:
            rng = group_rng(request.seed, f"templates/{behaviour.label}", 0)
            pairs = from_templates(behaviour, request.templates, rng)
        else:
            found = written.get(behaviour.label, [])
            pairs = [pair for pair in found if pair is not None]
            dropped["unreadable_pair"] += len(found) - len(pairs)
        good = request.filters.pairs(behaviour, pairs, dropped)
        if behaviour.qa or written is not None:  # templates are no loss
            dropped["over_limit"] += max(0, len(good) - request.num_questions)
        if good:
            qa[behaviour.label] = good[: request.num_questions]
    return qa


def _split(
    request: LatentQARequest, behaviours: Sequence[LatentQABehaviour]
) -> tuple[list[LatentQABehaviour], list[LatentQABehaviour]]:
    """Those to train on and those held out, whole groups of them.

    Raises:
        DataError: there is only one group, and some are to be held out.
    """
    groups = sorted({behaviour.group for behaviour in behaviours})
    random.Random(f"{request.seed}/split").shuffle(groups)
    count = round(request.validation_share * len(groups))
    if request.validation_share:
        count = max(1, count)
    if count >= len(groups):
        raise DataError(
            f"{len(groups)} group of behaviours is left, so none can be held out. Give behaviours "
            "of several groups, or set validation_share to 0."
        )
    held_out = set(groups[:count])
    return (
        [behaviour for behaviour in behaviours if behaviour.group not in held_out],
        [behaviour for behaviour in behaviours if behaviour.group in held_out],
    )


def _write_split(
    folder: Path, labels: Sequence[str], entries: _Entries, qa: Mapping[str, list[Pair]]
) -> list[Path]:
    """Writes the files of one split, and removes those that an earlier call left there."""
    chosen = set(labels)
    contents: dict[str, Any] = {
        f"{kind}.json": [
            entry for label, own in of_kind.items() if label in chosen for entry in own
        ]
        for kind, of_kind in entries.items()
    }
    contents["qa.json"] = {label: qa[label] for label in labels}
    files = []
    for name in (*(f"{kind}.json" for kind in get_args(Kind)), "qa.json"):
        if contents.get(name):
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / name, contents[name])
            files.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    return files


def _settings(request: LatentQARequest, model: TracedModel) -> dict[str, Any]:
    """All that the model's replies depend on."""
    stimuli = json.dumps(request.distinct_stimuli)
    return {
        "model": model.name,
        "base_digest": model.base_digest,
        "behaviours": behaviours_digest(request.distinct_behaviours),
        "stimuli": hashlib.sha256(stimuli.encode()).hexdigest(),
        "stimuli_per_behaviour": request.num_dialogues + request.spare_dialogues,
        "max_prompt_tokens": request.longest_chat(model),
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "batch_size": request.batch_size,
        "chat_template_kwargs": request.template_kwargs(),
    }


def _described(model: TracedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "revision": model.revision,
        "base_digest": model.base_digest,
        "tokenizer_digest": tokenizer_digest(model.tokenizer),
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _said(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "nothing dropped"


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
