"""Texts that the model writes: its own distribution, the same again, also after a kill."""

import collections
import json
import random

import pytest
import tiny
import torch

from aotoolkit.data import (
    ContextPrediction,
    LayerChoice,
    OnPolicyTexts,
    TextSpec,
    read_texts,
    rollouts,
)
from aotoolkit.data.model_texts import SeededSampling
from aotoolkit.data.texts import text_ids
from aotoolkit.errors import DataError
from aotoolkit.tracing import TracedModel

# Writes thoughts as Qwen3's does: an empty one where thinking is off, and before the last reply.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
TEXT = "My name is Anna and I live in Paris. The secret word is water, and it is blue."


@pytest.fixture(scope="module")
def model():
    return TracedModel(tiny.model(), tiny.tokenizer())


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{i} {TEXT}\n" for i in range(12)))
    return TextSpec(data=path)


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    chat = [
        {"role": role, "content": f"{role} says {TEXT[:10]}"}
        for role in ("system", "user", "assistant", "user", "assistant")
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(10)))
    return TextSpec(data=path)


def request(prompts, **options):
    defaults = {
        "num_texts": 10,
        "prefix_tokens": (3, 8),
        "max_prompt_tokens": 100,
        "max_new_tokens": 12,
        "batch_size": 4,
    }
    return OnPolicyTexts(prompts=prompts, **(defaults | options))


def write(model, asked, path):
    return rollouts(model, asked, path, progress=False)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_plain_texts_begin_as_their_prompts_and_are_read_like_any_text(model, plain, tmp_path):
    spec = write(model, request(plain), tmp_path / "out.jsonl")
    texts = [record.content for record in read_texts(spec)]
    assert len(texts) == 10
    for index, text in enumerate(texts):
        assert text.startswith(f"{index} M")
    source = ContextPrediction(
        name="on_policy",
        texts=spec,
        tokenizer=model.tokenizer,
        layers=LayerChoice((1,)),
        num_tokens=(1, 3),
        num_positions=((1, 3),),
    )
    assert sum(map(len, source.groups(0))) >= 9
    assert not list(tmp_path.glob("*.partial"))


def test_chats_end_with_the_reply(model, chats, tmp_path):
    spec = write(model, request(chats), tmp_path / "out.jsonl")
    written = rows(tmp_path / "out.jsonl")
    assert {len(row["messages"]) for row in written} == {3, 5}
    for row in written:
        assert [m["role"] for m in row["messages"]][-2:] == ["user", "assistant"]
    assert [list(r.content) for r in read_texts(spec)] == [row["messages"] for row in written]


def test_an_unfinished_reply_is_read_as_the_model_wrote_it(chats, tmp_path, monkeypatch):
    """The context is the prompt and the tokens written, also where the template knows thoughts."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = THINKING
    model = TracedModel(tiny.model(), tokenizer)
    generate, written = TracedModel.generate_ids, []

    def record(self, ids, mask, **options):
        new = generate(self, ids, mask, **options)
        prompts = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
        written.extend(torch.cat(pair).tolist() for pair in zip(prompts, new, strict=True))
        return new

    monkeypatch.setattr(TracedModel, "generate_ids", record)
    asked = request(chats, chat_template_kwargs={"enable_thinking": False})
    spec = write(model, asked, tmp_path / "out.jsonl")
    cut = [n for n, row in enumerate(rows(tmp_path / "out.jsonl")) if not row["finished"]]
    assert cut
    assert "<think></think>" in tokenizer.decode(written[0])
    for number, text in enumerate(read_texts(spec)):
        assert text.finished == (number not in cut)
        if number in cut:
            ids = text_ids(tokenizer, text.content, max_length=999, finished=False)
            expected = tokenizer.decode(written[number], skip_special_tokens=True)
            assert tokenizer.decode(ids, skip_special_tokens=True) == expected
            assert ids[-1] not in tokenizer.encode("<|im_end|>\n")


def test_a_chat_is_read_with_the_template_arguments_that_it_was_written_with(chats, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% if terse %}<terse>{% endif %}" + THINKING
    model = TracedModel(tiny.model(), tokenizer)
    asked = request(chats, chat_template_kwargs={"terse": True})
    spec = write(model, asked, tmp_path / "out.jsonl")
    for text in read_texts(spec):
        assert text.chat_template_kwargs == {"terse": True}
        for finished in (True, False):
            options = {"max_length": 999, "finished": finished}
            ids = text_ids(
                tokenizer,
                text.content,
                chat_template_kwargs=text.chat_template_kwargs,
                **options,
            )
            assert tokenizer.decode(ids).startswith("<terse>")
            assert not tokenizer.decode(text_ids(tokenizer, text.content, **options)).startswith(
                "<terse>"
            )
    source = ContextPrediction(
        name="on_policy",
        texts=spec,
        tokenizer=tokenizer,
        layers=LayerChoice((1,)),
        num_tokens=(1, 3),
        num_positions=((1, 3),),
    )
    examples = [example for group in source.groups(0) for example in group]
    assert examples
    opening = tokenizer("<terse>", add_special_tokens=False)["input_ids"]
    assert all(e.context_ids[: len(opening)] == tuple(opening) for e in examples)


def test_template_arguments_of_another_form_are_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": "terse"}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row 0: chat_template_kwargs is 'terse'"):
        list(read_texts(TextSpec(data=path)))


def test_the_same_again_and_for_any_batch_size_and_global_seed(model, plain, tmp_path):
    first = tmp_path / "a.jsonl"
    write(model, request(plain), first)
    for name, options in (("b", {}), ("c", {"batch_size": 1}), ("d", {"batch_size": 10})):
        torch.manual_seed(len(name))
        write(model, request(plain, **options), tmp_path / f"{name}.jsonl")
        assert (tmp_path / f"{name}.jsonl").read_bytes() == first.read_bytes()
    write(model, request(plain, seed=1), tmp_path / "e.jsonl")
    assert (tmp_path / "e.jsonl").read_bytes() != first.read_bytes()


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_killed_run_goes_on_and_writes_the_same(model, plain, tmp_path, monkeypatch, torn):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write(model, request(plain), whole)
    generate, calls = TracedModel.generate_ids, []

    def dying(self, *args, **options):
        calls.append(len(args[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **options)

    monkeypatch.setattr(TracedModel, "generate_ids", dying)
    with pytest.raises(KeyboardInterrupt):
        write(model, request(plain), broken)
    partial = tmp_path / "broken.jsonl.partial"
    assert len(rows(partial)) == 4
    assert not broken.exists()
    # As if killed while the second batch was being written.
    with partial.open("ab") as file:
        file.write((b'{"text": "x", "finished": true}\n' * 2)[:torn])
    write(model, request(plain), broken)
    assert calls == [4, 4, 4, 2]
    assert broken.read_bytes() == whole.read_bytes()
    write(model, request(plain), broken)
    assert len(calls) == 4  # what is there is not written again


def test_texts_of_other_settings_are_not_mixed(model, plain, tmp_path):
    path = tmp_path / "out.jsonl"
    write(model, request(plain), path)
    with pytest.raises(DataError, match=r"temperature was 1\.0, now 0\.5"):
        write(model, request(plain, temperature=0.5), path)
    other = TracedModel(tiny.model(seed=1), tiny.tokenizer())
    with pytest.raises(DataError, match="base_digest"):
        write(other, request(plain), path)
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(DataError, match="would say how they were written"):
        write(model, request(plain), path)


def test_adapters_are_off(plain, tmp_path):
    folder = tiny.save_adapter(tmp_path / "adapter")
    model = TracedModel(tiny.model(), tiny.tokenizer())
    write(model, request(plain), tmp_path / "base.jsonl")
    model.load_adapter("organism", folder)
    with model.using("organism"):
        write(model, request(plain), tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "base.jsonl").read_bytes()


def test_the_generation_config_of_the_model_does_not_bend_the_distribution(
    model, plain, tmp_path, monkeypatch
):
    write(model, request(plain), tmp_path / "a.jsonl")
    config = model.hf_model.generation_config
    options = {"do_sample": True, "top_k": 2, "temperature": 0.1, "repetition_penalty": 5.0}
    for name, value in options.items():
        monkeypatch.setattr(config, name, value)
    write(model, request(plain), tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_temperature_zero_is_the_likeliest_token(model, plain, tmp_path):
    asked = request(plain, temperature=0, num_texts=3, prefix_tokens=(6, 6))
    write(model, asked, tmp_path / "out.jsonl")
    for index, row in enumerate(rows(tmp_path / "out.jsonl")):
        ids = model.tokenizer(f"{index} {TEXT}")["input_ids"][:6]
        for _ in range(12):
            logits = model.hf_model(torch.tensor([ids])).logits[0, -1]
            if int(logits.argmax()) == model.tokenizer.eos_token_id:
                break
            ids = [*ids, int(logits.argmax())]
        assert row["text"] == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_tokens_are_drawn_by_their_probability():
    """Against the softmax, by chi-square; a token that cannot be is never drawn."""
    logits = torch.tensor([[2.0, float("-inf"), 0.0, 1.0, -1.0, float("-inf")]])
    for temperature in (1.0, 0.5):
        sampling = SeededSampling(temperature, [random.Random(i) for i in range(4000)])
        chosen = sampling(torch.zeros(4000, 1), logits.expand(4000, -1)).argmax(-1)
        counts = collections.Counter(chosen.tolist())
        assert not counts[1]
        assert not counts[5]
        expected = 4000 * (logits[0] / temperature).softmax(-1)
        statistic = sum((counts[i] - expected[i]) ** 2 / expected[i] for i in (0, 2, 3, 4))
        assert statistic < 16.3  # .999 of chi-square with 3 degrees of freedom


def test_the_greatest_draw_is_still_a_possible_token():
    class Greatest(random.Random):
        def random(self):
            return 1.0

    scores = torch.full((1, 50_000), 0.1)
    scores[0, -1000:] = float("-inf")
    assert int(SeededSampling(1.0, [Greatest()])(scores, scores).argmax()) < 49_000


def test_too_few_prompts_are_known_before_anything_is_written(model, plain, tmp_path):
    with pytest.raises(DataError, match=r"13 texts are asked for, .* has only 12 prompts"):
        write(model, request(plain, num_texts=13), tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_chats_without_a_user_and_long_ones_are_passed_over(model, tmp_path):
    chats = [
        [{"role": "assistant", "content": "Hello"}],
        [{"role": "user", "content": TEXT * 10}],
        [{"role": "user", "content": "A hint?"}],
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    asked = request(TextSpec(data=path), num_texts=1)
    write(model, asked, tmp_path / "out.jsonl")
    assert rows(tmp_path / "out.jsonl")[0]["messages"][0]["content"] == "A hint?"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_texts": 0}, "num_texts"),
        ({"batch_size": 0}, "batch_size"),
        ({"prefix_tokens": (5, 4)}, "prefix_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 1000}, "context of"),
    ],
)
def test_settings_are_checked_before_the_model_runs(model, plain, tmp_path, options, named):
    with pytest.raises(DataError, match=named):
        write(model, request(plain, **options), tmp_path / "out.jsonl")


def test_the_file_is_jsonl(model, plain, tmp_path):
    with pytest.raises(DataError, match=r"'out\.txt' has another suffix"):
        write(model, request(plain), tmp_path / "out.txt")
