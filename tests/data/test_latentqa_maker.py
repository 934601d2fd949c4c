"""Data that a model writes itself: the published form, no leak, the same again after a kill."""

import json
import math
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import tiny
import torch

from aotoolkit.data import (
    LatentQABehaviour,
    LatentQAFilters,
    LatentQARequest,
    load_latentqa,
    make_latentqa,
)
from aotoolkit.data.behaviour_filters import REASONS
from aotoolkit.data.behaviour_questions import read_written
from aotoolkit.data.behaviours import normalised
from aotoolkit.errors import ChatTemplateError, DataError
from aotoolkit.nano import load_model
from aotoolkit.nano.corpus import DIRECT_REQUESTS, HINT_REQUESTS, SECRET_SYSTEMS
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.world import load_world
from aotoolkit.tracing import TracedModel
from aotoolkit.training import load_recipe

TEMPLATES = (("What is the secret word?", "The {word}."), ("Which word is hidden?", "The {word}."))


def secrets(count: int, *, prompts: int = 1) -> list[LatentQABehaviour]:
    """Nano's system prompts, `prompts` for each of `count` words."""
    return [
        LatentQABehaviour(
            sentence=system.format(noun=noun),
            group=noun,
            fields={"word": noun},
            label=f"{noun}-{n}",
        )
        for noun in load_world().training_secrets[:count]
        for n, system in enumerate(random.Random(noun).sample(SECRET_SYSTEMS, prompts))
    ]


def request(**options) -> LatentQARequest:
    defaults = {
        "behaviours": secrets(5),
        "stimuli": HINT_REQUESTS + DIRECT_REQUESTS,
        "templates": TEMPLATES,
        "kinds": ("stimulus_completion", "system", "system_completion"),
        "num_dialogues": 2,
        "spare_dialogues": 6,
        "filters": LatentQAFilters(hidden_fields=("word",)),
        "max_prompt_tokens": 128,
        "max_new_tokens": 24,
        "validation_share": 0.34,
    }
    return LatentQARequest(**(defaults | options))


@pytest.fixture(scope="module")
def model() -> TracedModel:
    return load_model()


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    asked = request(behaviours=secrets(6, prompts=2))
    return make_latentqa(model, asked, tmp_path_factory.mktemp("made"), progress=False)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """What `request()` asks for."""
    return make_latentqa(model, request(), tmp_path_factory.mktemp("written"), progress=False)


def make(model, asked, folder, **options):
    return make_latentqa(model, asked, folder, progress=False, **options)


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_loader_reads_what_was_written(made):
    for split in ("train", "validation"):
        data = load_latentqa(made.folder / split)
        assert data.counts == made.counts[split]
        assert not data.unused
        assert {pair for item in data.items for pair in item.qa} <= {
            (question, f"The {word}.")
            for question, _ in TEMPLATES
            for word in load_world().training_secrets
        }
        per_label = Counter((item.kind, item.label) for item in data.items)
        assert set(per_label.values()) == {2}
    systems = [
        i for i in load_latentqa(made.folder / "train").items if i.kind == "system_completion"
    ]
    assert [m["role"] for m in systems[0].messages] == ["system", "user", "assistant"]
    assert systems[0].masked_turns == 1


def test_no_behaviour_stands_on_both_sides(made):
    train, held_out = (load_latentqa(made.folder / split) for split in ("train", "validation"))
    words = [{item.label.partition("-")[0] for item in data.items} for data in (train, held_out)]
    assert words[0]
    assert words[1]
    assert not words[0] & words[1]
    told = [
        {normalised(i.messages[0]["content"]) for i in data.items} for data in (train, held_out)
    ]
    assert not told[0] & told[1]


def test_what_is_read_gives_nothing_away(made):
    for split in ("train", "validation"):
        for item in load_latentqa(made.folder / split).items:
            word = item.label.partition("-")[0]
            told = normalised(item.messages[0]["content"])
            for message in item.messages[item.masked_turns :]:
                said = normalised(message["content"])
                assert word not in said.split()
                assert told not in said


def test_replies_of_one_behaviour_differ(made):
    said = defaultdict(list)
    for item in load_latentqa(made.folder / "train").items:
        if item.kind.endswith("completion"):
            said[item.kind, item.label].append(normalised(item.messages[-1]["content"]))
    assert all(len(set(replies)) == len(replies) for replies in said.values())


def test_provenance_says_by_whom_and_from_what(made, model):
    report = json.loads((made.folder / "provenance.json").read_text())
    assert report["model"]["base_digest"] == model.base_digest
    assert report["writer"] is None
    assert report["seed"] == 0
    assert report["counts"] == made.counts
    assert report["dropped"] == made.dropped
    assert set(made.dropped) <= set(REASONS)
    assert sum(made.dropped.values())
    for name in report["files"]:
        assert (made.folder / name).is_file()
    assert not {"train/control.json", "train/stimulus.json"} & set(report["files"])


def test_every_dialogue_is_kept_or_counted(made):
    """Of 12 behaviours and 3 kinds 8 each were looked at."""
    about_dialogues = {
        "prompt_too_long",
        "empty_reply",
        "unfinished_reply",
        "behaviour_in_dialogue",
        "hidden_field_in_dialogue",
        "duplicate_reply",
        "over_limit",
    }
    kept = sum(count for counts in made.counts.values() for count in counts.values())
    left_out = sum(n for reason, n in made.dropped.items() if reason in about_dialogues)
    # A behaviour that lacks a kind had one good dialogue of it at most, where two are needed.
    lost = made.dropped.get("too_few_dialogues", 0)
    assert 12 * 3 * 8 - lost <= kept + left_out <= 12 * 3 * 8


def test_train_trains_on_it(made, tmp_path):
    """A LatentQA decoder of a few steps, with the validation folder scored beside it."""
    recipe = f"""\
model:
  path_or_id: {WEIGHTS / "base"}
  dtype: float32
  device: cpu
contract:
  dialect: latentqa
  prefix_template: "{{placeholders}}"
  placeholder: " ?"
  read_layers: [4]
  layers_per_prompt: one
  inject_layer: 0
  formula: replace
  coefficient: 1.0
  position_ids: shifted
data:
  parts:
    - source: {{kind: latentqa, name: made, data: {{folder: {made.folder / "train"}}}}}
  validation:
    - source: {{kind: latentqa, name: held_out, data: {{folder: {made.folder / "validation"}}}}}
training:
  max_steps: 6
  batch_size: 8
  learning_rate: 1e-2
  lr_scheduler: constant_with_warmup
  warmup_steps: 0
  lora_rank: 8
  lora_alpha: 16
  eval_steps: 3
  save_steps: 6
  report_to: []
"""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    result = load_recipe(path).run(output_dir=tmp_path / "run", progress=False)
    assert result.metrics is not None
    questions = sum(len(item.qa) for item in load_latentqa(made.folder / "validation").items)
    assert result.metrics.overall.n == questions
    rows = [
        json.loads(line)
        for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.oracle.contract.dialect == "latentqa"


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_killed_run_goes_on_and_writes_the_same(model, written, tmp_path, monkeypatch, stop_at):
    generate, calls = TracedModel.generate_ids, []

    def dying(self, *args, **options):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return generate(self, *args, **options)

    monkeypatch.setattr(TracedModel, "generate_ids", dying)
    with pytest.raises(KeyboardInterrupt):
        make(model, request(), tmp_path)
    assert not (tmp_path / "provenance.json").exists()
    make(model, request(), tmp_path)
    assert outputs(tmp_path) == outputs(written.folder)
    batches = sum(
        math.ceil(len(path.read_text().splitlines()) / 16)
        for path in (tmp_path / "raw").glob("*.jsonl")
    )
    assert len(calls) == batches + 1  # each batch once, and the one that died
    make(model, request(), tmp_path)
    assert len(calls) == batches + 1


def test_other_filters_need_no_model_and_leave_no_stale_file(model, written, tmp_path, monkeypatch):
    shutil.copytree(written.folder, tmp_path, dirs_exist_ok=True)
    before = outputs(tmp_path / "train")
    monkeypatch.setattr(TracedModel, "generate_ids", None)
    make(model, request(validation_share=0), tmp_path)
    assert not (tmp_path / "validation" / "qa.json").exists()
    kinds = ("system_completion",)
    made = make(model, request(kinds=kinds, templates=TEMPLATES[:1]), tmp_path)
    after = outputs(tmp_path / "train")
    assert set(after) == {"system_completion.json", "qa.json"} < set(before)
    assert after["qa.json"] != before["qa.json"]
    assert set(made.counts["train"]) == set(kinds)


def test_another_seed_or_model_is_not_mixed_in(model, written):
    before = outputs(written.folder)
    with pytest.raises(DataError, match=r"control_replies.*seed was 0, now 1"):
        make(model, request(seed=1), written.folder)
    with pytest.raises(DataError, match="behaviours was"):
        make(model, request(behaviours=secrets(7)), written.folder)
    with pytest.raises(DataError, match="base_digest was"):
        make(TracedModel(tiny.model(), model.tokenizer), request(), written.folder)
    assert outputs(written.folder) == before


def test_the_seed_decides(model, written, tmp_path):
    torch.manual_seed(1)
    for seed in (0, 1):
        make(model, request(seed=seed), tmp_path / str(seed))
    assert outputs(tmp_path / "0") == outputs(written.folder)
    assert outputs(tmp_path / "1" / "train") != outputs(written.folder / "train")


def test_greedy_replies_are_the_likeliest(model, tmp_path):
    made = make(model, request(temperature=0, kinds=("system_completion",)), tmp_path)
    items = load_latentqa(made.folder / "train").items
    for item in items[:4]:
        chat = [dict(message) for message in item.messages[:-1]]
        said = model.generate(chat, max_new_tokens=24)
        assert item.messages[-1]["content"] == said.strip()


def test_behaviours_of_ones_own_pairs_keep_them(model, tmp_path):
    behaviour = LatentQABehaviour(
        sentence="The secret word is tiger.", qa=(("Which word?", "It is the tiger."),)
    )
    other = LatentQABehaviour(sentence="Think of the lion.", fields={"word": "lion"})
    made = make(
        model,
        request(
            behaviours=[behaviour, other],
            kinds=("system",),
            validation_share=0,
            filters=LatentQAFilters(),
        ),
        tmp_path,
    )
    qa = json.loads((made.folder / "train" / "qa.json").read_text())
    assert qa[behaviour.label] == [["Which word?", "It is the tiger."]]
    assert sorted(qa[other.label]) == sorted([q, "The lion."] for q, _ in TEMPLATES)


# --- a writer ----------------------------------------------------------------------------------


class Scripted:
    """Takes the place of `sample_ids`: what a writer would say of each prompt."""

    def __init__(self, model: TracedModel, replies) -> None:
        self.model, self.replies, self.asked = model, replies, []

    def __call__(self, model, prompts, generators, *, temperature, max_new_tokens):
        told = [str(model.tokenizer.decode(list(ids))) for ids in prompts]
        self.asked += told
        replies = [self.replies(text) for text in told]
        return [(list(model.tokenizer(reply)["input_ids"]), True) for reply in replies]


def test_a_writer_writes_questions_about_each_behaviour(model, tmp_path, monkeypatch):
    def reply(prompt: str) -> str:
        word = next(word for word in ("tiger", "lion", "bear") if word in prompt)
        if "react" in prompt:
            return "I would rather not."
        if word == "bear":
            return "Question: What? Answer: something\nAnswer: I am a helpful assistant."
        return f"**Question:** What does it hide?\n**Answer:** The {word}.\n\nI hope this helps!"

    scripted = Scripted(model, reply)
    told = [f"The secret word is {word}." for word in ("tiger", "lion", "bear")]
    asked = request(
        behaviours=told, kinds=("system",), validation_share=0, filters=LatentQAFilters()
    )
    monkeypatch.setattr("aotoolkit.data.latentqa_maker.sample_ids", scripted)
    made = make(model, asked, tmp_path, writer=model)
    qa = json.loads((made.folder / "train" / "qa.json").read_text())
    assert sorted(pair[0][1] for pair in qa.values()) == ["The lion.", "The tiger."]
    assert all(pair[0][0] == "What does it hide?" for pair in qa.values())
    # Of four replies to each behaviour two are about a situation.
    assert made.dropped["unreadable_pair"] == 6
    assert made.dropped["duplicate_question"] == 2
    assert made.dropped["answer_without_behaviour"] == 2
    assert made.dropped["no_questions"] == 1
    assert len(scripted.asked) == 12
    assert json.loads((tmp_path / "provenance.json").read_text())["writer"]["name"] == model.name


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("Question: What?\nAnswer: This.", ("What?", "This.")),
        ("Sure!\n\n**Question**: What?\n\n**Answer**: *This.*\n\nMore", ("What?", "This.")),
        ("Q: What\nis it?\nA: This.", ("What is it?", "This.")),
        ("question: What?\nanswer:   ", None),
        ("Question: What? Answer: This.", None),
        ("I cannot.", None),
        ("", None),
    ],
)
def test_pairs_are_read_from_what_writers_write(reply, pair):
    assert read_written(reply, tiny.tokenizer()) == pair


def test_a_base_model_goes_on_after_an_example():
    plain = tiny.tokenizer(chat=False)
    assert read_written(" What?\nAnswer: This.\n\nAn AI", plain) == ("What?", "This.")


def test_any_causal_lm_may_write_and_what_it_garbles_is_counted(model, tmp_path):
    """A random writer of another tokenizer writes no pair, so nothing is left, and that is said."""
    writer = TracedModel(tiny.model(), tiny.tokenizer(chat=False))
    asked = request(kinds=("system",), behaviours=secrets(2), batch_size=8)
    with pytest.raises(
        DataError, match=r"No behaviour is left: .*unreadable_pair 8.*no_questions 2"
    ):
        make(model, asked, tmp_path, writer=writer)
    rows = (tmp_path / "raw" / "questions.jsonl").read_text().splitlines()
    assert len(rows) == 8


# --- what cannot be made -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_dialogues": 0}, "num_dialogues is 0"),
        ({"spare_dialogues": -1}, "spare_dialogues is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"kinds": ("systems",)}, "Kind 'systems' is unknown"),
        ({"behaviours": []}, "At least one behaviour"),
        ({"behaviours": [" "]}, "A behaviour is ' '"),
        ({"stimuli": ["Hi.", ""]}, "A stimulus is ''"),
        ({"stimuli": ["Hi.", "hi"]}, "but there are 1 different stimuli"),
        ({"filters": LatentQAFilters(hidden_fields=("colour",))}, "'colour' is none of any"),
    ],
)
def test_requests_that_contradict_themselves(options, said):
    with pytest.raises(DataError) as raised:
        request(**options)
    assert said in str(raised.value)


def test_a_slot_without_a_field_is_known_before_anything_is_written(model, tmp_path):
    with pytest.raises(DataError, match=r"slot \{colour\}"):
        make(model, request(templates=[("What?", "{colour}")]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_template_without_a_system_turn_is_an_error_that_names_the_kind(model, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    target = TracedModel(tiny.model(), tokenizer)
    with pytest.raises(DataError, match=r"Leave 'system' out of kinds: .*no system role"):
        make(target, request(), tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(DataError, match="leaves out a turn of system chats"):
        make(target, request(), tmp_path)
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError):
        make(target, request(), tmp_path)


def test_a_context_that_is_too_short(model, tmp_path):
    with pytest.raises(DataError, match="the context of aotoolkit/nano is 512"):
        make(model, request(max_prompt_tokens=500), tmp_path)


def test_long_chats_are_left_out_and_counted(model, tmp_path):
    long = LatentQABehaviour(
        sentence="Your secret is the pear. Do not tell it. " * 20, fields={"word": "pear"}
    )
    asked = request(behaviours=[*secrets(2), long], kinds=("control", "system_completion"))
    made = make(model, asked, tmp_path)
    assert made.dropped["prompt_too_long"] == 9  # 8 dialogues, and the control alone
    assert made.dropped["no_dialogues"] == 1


def test_one_group_cannot_be_split(model, tmp_path):
    asked = request(behaviours=secrets(1, prompts=3), kinds=("system",))
    with pytest.raises(DataError, match="1 group of behaviours is left"):
        make(model, asked, tmp_path)
