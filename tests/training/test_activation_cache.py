"""The cache gives what a read gives, survives kills, and refuses what is not its own."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_examples import contract, examples

from aotoolkit.errors import ActivationCacheError, CorruptedFileError
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import TrainingConfig, activation_cache, train_oracle
from aotoolkit.training.activation_cache import CACHE_FILE, ActivationCache
from aotoolkit.training.collator import ActivationCollator

EXAMPLES = examples(40)


@pytest.fixture(scope="module")
def model():
    return TracedModel(tiny.model(), tiny.tokenizer())


@pytest.fixture(scope="module")
def filled(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return fill(model, folder).folder


def fill(model, folder, drawn=EXAMPLES, **options):
    return ActivationCache.fill(
        model, drawn, folder, **({"shard_bytes": 4096, "progress": False} | options)
    )


def collators(model, cache):
    described = contract(model.tokenizer)
    return (
        ActivationCollator(model, described, VectorTransform(), cache=cache),
        ActivationCollator(model, described, VectorTransform()),
    )


def shards(folder):
    return sorted(path.name for path in Path(folder).glob("shard-*"))


def test_cached_vectors_are_those_of_a_read(model, filled, monkeypatch):
    cached, read = collators(model, ActivationCache(filled))
    # Another selection, in another order, with vectors that are made.
    drawn = [*EXAMPLES[7:31:3], *EXAMPLES[:5]]
    drawn += [
        dataclasses.replace(e, evidence=kind) for e in drawn[:2] for kind in ("zero", "random")
    ]
    expected = read.vectors(drawn)
    monkeypatch.setattr(model, "residuals", None)  # would fail if called
    for ours, theirs in zip(cached.vectors(drawn), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_size_is_known_beforehand(model, filled):
    size = ActivationCache.estimate(model, EXAMPLES)
    assert size.contexts == len({e.context_ids for e in EXAMPLES}) == len(ActivationCache(filled))
    tensors = [load_file(filled / name) for name in shards(filled)]
    assert len(tensors) > 3
    assert size.positions == sum(len(shard["positions"]) for shard in tensors)
    stored = sum(tensor.nbytes for shard in tensors for tensor in shard.values())
    assert size.bytes == pytest.approx(stored, rel=0.01)
    assert f"{size.positions} positions" in str(size)


def test_only_what_is_read_is_stored_and_zeros_are_not(model, tmp_path):
    drawn = [dataclasses.replace(e, evidence="zero") for e in EXAMPLES]
    with pytest.raises(ActivationCacheError, match="nothing to cache"):
        fill(model, tmp_path, drawn)
    assert len(fill(model, tmp_path, [EXAMPLES[0], *drawn])) == 1


def test_a_second_fill_reads_nothing_and_new_examples_add_to_it(model, tmp_path, monkeypatch):
    fill(model, tmp_path, EXAMPLES[:20])
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in shards(tmp_path)}
    monkeypatch.setattr(model, "residuals", None)
    fill(model, tmp_path, EXAMPLES[:20])
    monkeypatch.undo()
    cache = fill(model, tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert len(shards(tmp_path)) > len(before)
    cached, read = collators(model, cache)
    for ours, theirs in zip(cached.vectors(EXAMPLES), read.vectors(EXAMPLES), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_context_of_which_more_is_read_is_stored_again(model, tmp_path):
    one = dataclasses.replace(EXAMPLES[0], positions=(0,), layers=(1, 2))
    more = dataclasses.replace(one, positions=(1, 3))
    fill(model, tmp_path, [one])
    cache = fill(model, tmp_path, [one, more])
    cached, read = collators(model, cache)
    for ours, theirs in zip(cached.vectors([one, more]), read.vectors([one, more]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fills_of_one_context_in_turn_end(model, tmp_path, monkeypatch):
    one = dataclasses.replace(EXAMPLES[0], positions=(0,))
    other = dataclasses.replace(one, positions=(2,))
    fill(model, tmp_path, [one])
    fill(model, tmp_path, [other])
    monkeypatch.setattr(model, "residuals", None)
    fill(model, tmp_path, [one])
    fill(model, tmp_path, [other])


def test_an_incomplete_cache_is_refused_before_the_first_step(model, tmp_path):
    cache = fill(model, tmp_path / "cache", EXAMPLES[:20])
    cache.check_examples(EXAMPLES[:20])
    cache.check_examples([dataclasses.replace(EXAMPLES[30], evidence="zero")])
    with pytest.raises(ActivationCacheError, match="lacks what 20 of 40 examples read"):
        cache.check_examples(EXAMPLES)
    settings = TrainingConfig(output_dir=tmp_path / "run", lora_rank=2, report_to=())
    for drawn, held_out in ((EXAMPLES, []), (EXAMPLES[:20], EXAMPLES[20:])):
        with pytest.raises(ActivationCacheError, match="lacks"):
            train_oracle(
                model,
                drawn,
                settings,
                contract=contract(model.tokenizer),
                validation=held_out,
                cache=cache,
            )
    assert not settings.output_dir.exists()


def test_what_is_not_in_the_cache_is_an_error_not_a_read(model, filled):
    cached, _ = collators(model, ActivationCache(filled))
    with pytest.raises(ActivationCacheError, match="1 of 2 contexts"):
        cached.vectors([EXAMPLES[0], dataclasses.replace(EXAMPLES[1], context_ids=(7,) * 20)])
    unread = set(range(len(EXAMPLES[0].context_ids))) - {
        p for e in EXAMPLES if e.context_ids == EXAMPLES[0].context_ids for p in e.positions
    }
    with pytest.raises(ActivationCacheError, match="1 of 1 contexts"):
        cached.vectors([dataclasses.replace(EXAMPLES[0], positions=(min(unread),))])
    with pytest.raises(ActivationCacheError, match=r"has the layers \[1, 2\], .* read \[3\]"):
        cached.vectors([dataclasses.replace(EXAMPLES[0], layers=(3,))])


def test_another_base_or_other_layers_are_refused(model, filled, tmp_path):
    other = TracedModel(tiny.model(seed=1), tiny.tokenizer())
    with pytest.raises(ActivationCacheError, match="is of the base"):
        collators(other, ActivationCache(filled))
    with pytest.raises(ActivationCacheError, match="is of the base"):
        fill(other, filled)
    with pytest.raises(ActivationCacheError, match=r"the examples read \[1\]"):
        fill(model, filled, [dataclasses.replace(e, layers=(1,)) for e in EXAMPLES])
    fill(other, tmp_path)
    shutil.copy(tmp_path / shards(tmp_path)[0], filled / "shard-99999.safetensors")
    with pytest.raises(ActivationCacheError, match="not written for this cache"):
        ActivationCache(filled)
    (filled / "shard-99999.safetensors").unlink()


def test_no_cache_another_format_and_a_broken_shard_are_named(model, tmp_path):
    with pytest.raises(ActivationCacheError, match="no activation cache"):
        ActivationCache(tmp_path)
    fill(model, tmp_path)
    broken = tmp_path / shards(tmp_path)[1]
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(CorruptedFileError, match=broken.name):
        ActivationCache(tmp_path)
    broken.unlink()
    cached, read = collators(model, fill(model, tmp_path))
    for ours, theirs in zip(cached.vectors(EXAMPLES), read.vectors(EXAMPLES), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    described = json.loads((tmp_path / CACHE_FILE).read_text())
    (tmp_path / CACHE_FILE).write_text(json.dumps(described | {"format": 9}))
    with pytest.raises(ActivationCacheError, match="format 9"):
        ActivationCache(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_reading(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "residuals", None)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ActivationCacheError, match=r"still needs .* GB free"):
        fill(model, tmp_path)
    assert shards(tmp_path) == []


def test_a_disk_that_fills_up_leaves_whole_shards_to_go_on_from(model, tmp_path, monkeypatch):
    original, calls = activation_cache.save_file, []

    def full_the_third_time(tensors, path, **options):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path, **options)

    monkeypatch.setattr(activation_cache, "save_file", full_the_third_time)
    with pytest.raises(ActivationCacheError, match=r"No space left on device. The 2 before it"):
        fill(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CACHE_FILE, *shards(tmp_path)])
    assert len(shards(tmp_path)) == 2
    monkeypatch.undo()
    assert len(fill(model, tmp_path)) == ActivationCache.estimate(model, EXAMPLES).contexts


FILL_SLOWLY = """
import sys, time
sys.path[:0] = sys.argv[2:]
import tiny
from tiny_examples import examples
from aotoolkit.tracing import TracedModel
from aotoolkit.training import activation_cache
original = activation_cache.save_file
def slow(*args, **options):
    original(*args, **options)
    time.sleep(0.2)
activation_cache.save_file = slow
model = TracedModel(tiny.model(), tiny.tokenizer())
activation_cache.ActivationCache.fill(
    model, examples(40), sys.argv[1], shard_bytes=4096, progress=False
)
"""


def test_a_killed_fill_goes_on_with_what_is_missing(model, tmp_path):
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", FILL_SLOWLY, str(tmp_path), str(tests), str(tests / "training")],
        cwd=tests.parent,
    )
    while not any(tmp_path.glob(".shard-00002*")):  # being written
        assert process.poll() is None, "the fill ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {name: (tmp_path / name).stat().st_mtime_ns for name in shards(tmp_path)}
    assert done
    cache = fill(model, tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in done} == done
    assert not any(tmp_path.glob(".shard*"))
    cached, read = collators(model, cache)
    for ours, theirs in zip(cached.vectors(EXAMPLES), read.vectors(EXAMPLES), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_activations_of_another_dtype_are_refused(model, filled):
    assert ActivationCache(filled).dtype == "float32"
    cache = ActivationCache(filled)
    cache.dtype = "float16"
    with pytest.raises(ActivationCacheError, match="read in float16"):
        cache.check_base(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', "null"])
def test_a_damaged_description_is_named(tmp_path, text):
    (tmp_path / CACHE_FILE).write_text(text)
    with pytest.raises(ActivationCacheError, match=r"damaged|has format"):
        ActivationCache(tmp_path)


def test_of_two_entries_the_newer_counts_whatever_was_deleted(model, tmp_path):
    one = dataclasses.replace(EXAMPLES[0], positions=(1, 2), layers=(1, 2))
    fill(model, tmp_path, [dataclasses.replace(EXAMPLES[5], layers=(1, 2))])
    fill(model, tmp_path, [one])
    (tmp_path / "shard-00000.safetensors").unlink()
    more = dataclasses.replace(one, positions=(1, 3))
    fill(model, tmp_path, [more])
    ActivationCache(tmp_path).check_examples([one, more])
