"""Context prediction: answers are the true neighbours, and the defaults are the paper's recipe."""

import collections
import contextlib
import json
import random
import re

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data import ContextPrediction, LayerChoice, TextSpec
from aotoolkit.data.texts import text_ids
from aotoolkit.errors import ChatTemplateError, DataError

WORDS = ["water", "blue", "hint", "secret", "Paris", "Anna", "live", "name", "12", "é", "你", "🙂"]
TOKENIZER = tiny.tokenizer()


def text(rng, length, words=WORDS):
    return " ".join(rng.choice(words) for _ in range(length))


def write_texts(path, lengths, words=WORDS):
    rng = random.Random(0)
    lines = [f"{row} {text(rng, length, words)}\n" for row, length in enumerate(lengths)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def source(path, **options):
    defaults = {"layers": LayerChoice((1, 2, 3), "each"), "tokenizer": TOKENIZER}
    return ContextPrediction(name="context", texts=TextSpec(data=path), **(defaults | options))


def asked(example):
    """Direction and number of tokens, as the paper words them."""
    past = re.fullmatch(
        r"Can you predict the previous (\d+) tokens that came before this\?", example.question
    )
    future = re.fullmatch(
        r"Can you predict the next (\d+) tokens that come after this\?", example.question
    )
    found = past or future
    assert found, example.question
    return ("past" if past else "future"), int(found[1])


def check_neighbours(example, ids):
    """The answer is what stands beside the window in the text `ids`; -> direction, J, K."""
    direction, count = asked(example)
    first, last = example.positions[0], example.positions[-1]
    assert example.positions == tuple(range(first, last + 1))
    assert example.context_ids == ids[: len(example.context_ids)]
    if direction == "past":
        target = range(first - count, first)
        assert last < len(ids) - 1
    else:
        target = range(last + 1, last + 1 + count)
        assert first >= 1
    assert set(target) <= set(range(len(ids)))
    assert not set(target) & set(example.positions)
    assert example.answer == TOKENIZER.decode([ids[i] for i in target], skip_special_tokens=True)
    return direction, count, len(example.positions)


@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=6),
    num_tokens=st.tuples(st.integers(1, 5), st.integers(0, 20)),
    num_positions=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 20)), min_size=1, max_size=3
    ),
    max_length=st.integers(12, 90),
    mode=st.sampled_from(["one", "each", "all"]),
    seed=st.integers(0, 3),
)
def test_answers_are_the_true_neighbours(
    tmp_path_factory, lengths, num_tokens, num_positions, max_length, mode, seed
):
    path = write_texts(tmp_path_factory.mktemp("texts") / "a.txt", [*lengths, 120])
    texts = [
        text_ids(TOKENIZER, line, max_length=max_length)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    tokens = (num_tokens[0], sum(num_tokens))
    windows = tuple((low, low + more) for low, more in num_positions)
    made = source(
        path,
        num_tokens=tokens,
        num_positions=windows,
        max_length=max_length,
        layers=LayerChoice((1, 2, 3), mode),
    )
    # Where the sizes are not sure to fit, all may be drawn too large; one token may be a blank.
    sure = tokens[0] > 1 and tokens[1] + max(high for _, high in windows) + 1 <= max_length
    with contextlib.nullcontext() if sure else contextlib.suppress(DataError):
        groups = list(made.groups(seed))
        assert groups
        check_groups(groups, texts, tokens, windows)


def check_groups(groups, texts, tokens, windows):
    for group in groups:
        (context,) = {example.context_ids for example in group}
        assert len(context) == max(example.positions[-1] for example in group) + 1
        (ids,) = [ids for ids in texts if ids[: len(context)] == context]
        for example in group:
            _, count, width = check_neighbours(example, ids)
            assert tokens[0] <= count <= tokens[1]
            assert any(low <= width <= high for low, high in windows)
            assert example.source == "context"


def test_the_defaults_are_the_recipe_of_the_paper(tmp_path):
    # No characters of several tokens, since a blank that is a token by itself is no answer.
    path = write_texts(tmp_path / "a.txt", [600] * 200, words=WORDS[:8])
    made = source(path)
    (ids,) = {
        len(text_ids(TOKENIZER, line, max_length=512))
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    assert ids == 512 == made.max_length
    groups = list(made.groups(0))
    assert len(groups) == 200
    drawn = collections.defaultdict(list)
    for group in groups:
        # Two windows, each at every layer.
        assert [e.layers for e in group] == [(1,), (2,), (3,)] * 2
        for variant, window in (("single", group[:3]), ("several", group[3:])):
            assert len({(e.positions, e.question, e.answer) for e in window}) == 1
            direction, count = asked(window[0])
            drawn[variant].append((direction, count, len(window[0].positions)))
    assert {width for _, _, width in drawn["single"]} == {1}
    for values in ([k for *_, k in drawn["several"]], [j for d in drawn.values() for _, j, _ in d]):
        assert (min(values), max(values)) == (1, 50)
        assert abs(sum(values) / len(values) - 25.5) < 4 * 14.43 / len(values) ** 0.5
    past = sum(direction == "past" for d in drawn.values() for direction, *_ in d)
    assert abs(past - 200) < 4 * 400**0.5 / 2


def test_one_text_may_be_left_out_and_the_others_stay_as_they_were(tmp_path):
    """A group depends on its row alone, not on what was drawn before it."""
    path = write_texts(tmp_path / "a.txt", [150, 150, 150])
    before = list(source(path).groups(0))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], "x", lines[2]]), encoding="utf-8")
    assert list(source(path).groups(0)) == [before[0], before[2]]
    assert list(source(path).groups(1)) != [before[0], before[2]]


def test_groups_are_lazy(tmp_path):
    """The row that cannot be read is not reached before its turn."""
    rows = [{"text": "Anna " * 200}, {"text": ["no chat"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    groups = source(tmp_path).groups(0)
    assert next(groups)
    with pytest.raises(DataError, match="row 1"):
        next(groups)


def test_chats_are_rendered_by_the_template(tmp_path):
    chat = [
        {"role": "user", "content": text(random.Random(0), 60)},
        {"role": "assistant", "content": text(random.Random(1), 60)},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    ids = tuple(
        TOKENIZER(TOKENIZER.apply_chat_template(chat, tokenize=False), add_special_tokens=False)[
            "input_ids"
        ]
    )
    made = source(tmp_path / "a.jsonl", num_tokens=(1, 5), num_positions=((1, 5),) * 4)
    ((*examples,),) = made.groups(0)
    for example in examples:
        check_neighbours(example, ids)
    with pytest.raises(ChatTemplateError):
        list(source(tmp_path / "a.jsonl", tokenizer=tiny.tokenizer(chat=False)).groups(0))


def test_a_chat_that_the_template_refuses_is_named_by_its_row(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    rows = [[{"role": role, "content": "Anna " * 150}] for role in ("user", "system")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": r}) + "\n" for r in rows))
    with pytest.raises(DataError, match=r"a\.jsonl', row 1: .*no system role"):
        list(source(tmp_path / "a.jsonl", tokenizer=tokenizer).groups(0))


def test_answers_without_text_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("<|im_end|>" * 40 + "\n" + "Anna lives in Paris. " * 10 + "\n")
    groups = list(source(tmp_path / "a.txt", num_tokens=(1, 3), num_positions=((1, 3),)).groups(0))
    assert len(groups) == 1
    assert all(example.answer.strip() for example in groups[0])


def test_no_text_is_long_enough(tmp_path):
    path = write_texts(tmp_path / "a.txt", [3, 4])
    with pytest.raises(DataError, match=r"a\.txt' is long enough for 'context': the longest has"):
        list(source(path, num_tokens=(40, 50)).groups(0))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_tokens": (0, 5)}, "num_tokens"),
        ({"num_tokens": (5, 2)}, "num_tokens"),
        ({"num_positions": ()}, "num_positions"),
        ({"num_positions": ((1, 1), (3, 2))}, "num_positions"),
        ({"directions": ()}, "directions"),
        ({"directions": ("sideways",)}, "directions"),
        ({"past_question": "What was before?"}, r"\{count\}"),
        ({"max_length": 2}, "max_length"),
    ],
)
def test_settings_are_checked_before_anything_is_read(options, named):
    with pytest.raises(DataError, match=named):
        source("none.txt", **options)


def test_the_description_is_json_and_tells_tokenizers_apart(tmp_path):
    path = write_texts(tmp_path / "a.txt", [3])
    described = source(path).describe()
    assert json.loads(json.dumps(described))["texts"]["data"] == "a.txt"
    assert source(path, tokenizer=tiny.tokenizer(chat=False)).describe() != described
