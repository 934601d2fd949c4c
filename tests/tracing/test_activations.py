"""Activations: slicing, differences, files; and the reference implementation's reads."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aotoolkit.errors import (
    CorruptedFileError,
    IncompatibleActivationsError,
    LayerError,
    NonFiniteError,
    PositionError,
)
from aotoolkit.tracing import Activations, Provenance, TracedModel
from aotoolkit.tracing.activations import resolve_layers, resolve_positions

PROMPT = "What is the secret word?"


def make(
    num_positions: int = 6, *, layers: tuple[int, ...] = (2, 4, 6), first: int = 3, seed: int = 0
) -> Activations:
    """Without a model: the positions from `first` on of a prompt two tokens longer."""
    generator = torch.Generator().manual_seed(seed)
    places = range(num_positions)
    return Activations(
        vectors=torch.randn(len(layers), num_positions, 5, generator=generator),
        layers=layers,
        context_ids=tuple(range(100, 100 + first + num_positions + 2)),
        positions=tuple(first + i for i in places),
        token_ids=tuple(100 + first + i for i in places),
        tokens=tuple(f"<{i}>" for i in places),
        offsets=tuple((3 * i, 3 * i + 3) for i in places),
        text="".join(f"<{i}>" for i in places),
        provenance=Provenance(
            model="tiny",
            revision=None,
            base_digest="0" * 64,
            num_layers=8,
            adapter=None,
            adapter_digest=None,
            chat_template_digest=None,
            dtype="float32",
            source="nnsight",
            versions={},
        ),
    )


slices = st.builds(
    slice,
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-3, 3).filter(bool),
)


@given(n=st.integers(1, 8), index=slices)
def test_a_slice_takes_what_it_takes_of_a_list(n: int, index: slice) -> None:
    acts = make(n)
    expected = list(range(n))[index]
    if not expected:
        with pytest.raises(PositionError, match="empty"):
            acts[index]
        return
    taken = acts[index]
    assert taken.positions == tuple(3 + i for i in expected)
    assert taken.token_ids == tuple(103 + i for i in expected)
    assert taken.tokens == tuple(f"<{i}>" for i in expected)
    assert taken.offsets == tuple((3 * i, 3 * i + 3) for i in expected)
    assert torch.equal(taken.vectors, acts.vectors[:, expected])
    assert taken.context_ids == acts.context_ids
    assert taken.layers == acts.layers
    assert len(taken) == len(expected)


@given(n=st.integers(1, 8), indices=st.lists(st.integers(-10, 10), max_size=5))
def test_a_list_of_indices(n: int, indices: list[int]) -> None:
    acts = make(n)
    if not indices or any(not -n <= i < n for i in indices):
        with pytest.raises(PositionError):
            acts[indices]
        return
    assert torch.equal(acts[indices].vectors, acts.vectors[:, indices])


@given(n=st.integers(1, 8), positions=st.lists(st.integers(-14, 14), max_size=4))
def test_at_goes_by_position_in_the_prompt(n: int, positions: list[int]) -> None:
    acts = make(n)
    length = len(acts.context_ids)
    wanted = [p % length for p in positions if -length <= p < length]
    readable = len(wanted) == len(positions) and all(3 <= p < 3 + n for p in wanted)
    if not wanted or not readable:
        with pytest.raises(PositionError):
            acts.at(positions)
        return
    assert acts.at(positions).positions == tuple(wanted)
    assert torch.equal(acts.at(positions).vectors, acts.vectors[:, [p - 3 for p in wanted]])


@pytest.mark.parametrize("position", [0.5, 2.9, True, "1", None])
def test_a_position_is_a_whole_number(position: object) -> None:
    acts = make(4)
    for choose in (
        lambda: acts[[position]],
        lambda: acts.at([position]),
        lambda: resolve_positions([position], 4),
    ):
        with pytest.raises(PositionError, match="whole number"):
            choose()


def test_numbers_of_numpy_are_numbers() -> None:
    acts = make(4)
    third = np.int64(2)
    assert acts[third].positions == acts[2].positions
    assert acts.at(np.int64(4)).positions == acts.at(4).positions
    assert resolve_layers(np.int64(1), 4) == resolve_layers(1, 4) == (1,)
    assert resolve_layers([np.int64(1), np.float64(0.5)], 4) == (1, 2)
    assert all(type(layer) is int for layer in resolve_layers([np.int64(1)], 4))


def test_one_position_and_iteration() -> None:
    acts = make(3)
    assert acts[1].vectors.shape == (3, 1, 5)
    assert acts.at(4).positions == acts[1].positions == (4,)
    assert [one.positions for one in acts] == [(3,), (4,), (5,)]
    with pytest.raises(PositionError, match="have 3 positions"):
        acts[3]


def test_layers_by_index_from_the_end_and_by_fraction() -> None:
    acts = make()
    for wanted in (4, 0.5, [4], -4, [0.5]):
        assert acts.layer(wanted).layers == (4,)
        assert torch.equal(acts.layer(wanted).vectors, acts.vectors[1:2])
    assert acts.layer([6, 2]).layers == (6, 2)
    assert torch.equal(acts.layer([6, 2]).vectors, acts.vectors[[2, 0]])
    for wrong, message in (
        (3, "was not read"),
        (8, "has 8 blocks"),
        (1.0, "no fraction"),
        ([], "No layers"),
        ([4, 0.5], "twice"),
        (True, "block index or a fraction"),
    ):
        with pytest.raises(LayerError, match=message):
            acts.layer(wrong)


def test_difference_of_two_adapters(model: TracedModel) -> None:
    a, b, base = (model.activations(PROMPT, layers=[1, 2], adapter=n) for n in ("a", "b", None))
    difference = a - b
    assert torch.equal(difference.vectors, a.vectors - b.vectors)
    assert difference.provenance.subtracted == b.provenance
    assert difference.adapter == "a"
    assert "a - b" in repr(difference)
    for wrong, message in (
        (base[1:], "positions"),
        (base.layer(1), "layers"),
        (model.activations("My name is Anna.", layers=[1, 2]), "prompts"),
        (difference, "difference already"),
    ):
        with pytest.raises(IncompatibleActivationsError, match=message):
            a - wrong
    with pytest.raises(TypeError):
        a - 1  # pyright: ignore[reportOperatorIssue]


def test_amplified_is_the_base_and_several_times_the_change(
    model: TracedModel, tmp_path: Path
) -> None:
    a, base = (model.activations(PROMPT, layers=[1, 2], adapter=n) for n in ("a", None))
    more = a.amplified(base, by=1.5)
    assert torch.allclose(more.vectors, base.vectors + 1.5 * (a.vectors - base.vectors))
    assert torch.allclose(a.amplified(base, by=1).vectors, a.vectors, atol=1e-5)
    assert torch.equal(a.amplified(base, by=0).vectors, base.vectors)
    assert (more.adapter, more.provenance.amplified_by) == ("a", 1.5)
    assert more.provenance.amplified_from == base.provenance
    assert "a, 1.5 times its difference to base" in repr(more)
    more.save(tmp_path / "more")
    again = Activations.load(tmp_path / "more")
    assert again.provenance == more.provenance
    assert torch.equal(again.vectors, more.vectors)
    for wrong, message in (
        (base[1:], "positions"),
        (base.layer(1), "layers"),
        (model.activations("My name is Anna.", layers=[1, 2]), "prompts"),
        (a - base, "difference already"),
        (more, "amplified already"),
    ):
        with pytest.raises(IncompatibleActivationsError, match=message):
            a.amplified(wrong, by=2)
    with pytest.raises(IncompatibleActivationsError, match="amplified already"):
        more - base
    for by in (-1, float("nan"), float("inf")):
        with pytest.raises(IncompatibleActivationsError, match="from 0 on"):
            a.amplified(base, by=by)


def test_without_common_is_less_a_share_of_what_siblings_changed(
    model: TracedModel, tmp_path: Path
) -> None:
    a, b, base = (model.activations(PROMPT, layers=[1, 2], adapter=n) for n in ("a", "b", None))
    other = dataclasses.replace(
        b,
        vectors=b.vectors + 3,
        provenance=dataclasses.replace(b.provenance, adapter="c", adapter_digest="c" * 64),
    )
    for share in (0.0, 0.5, 1.0):
        less = a.without_common([b, other], base, share=share)
        expected = a.vectors - share * ((b.vectors + other.vectors) / 2 - base.vectors)
        torch.testing.assert_close(less.vectors, expected)
    assert (less.adapter, less.provenance.common_share) == ("a", 1.0)
    assert less.provenance.common_to == (b.provenance, other.provenance, base.provenance)
    assert "a, less 1 of what 2 siblings have in common" in repr(less)
    less.save(tmp_path / "less")
    again = Activations.load(tmp_path / "less")
    assert again.provenance == less.provenance
    assert torch.equal(again.vectors, less.vectors)
    for siblings, plain, message in (
        ([b[1:]], base, "positions"),
        ([b], base.layer(1), "layers"),
        ([], base, "no siblings"),
        ([b, a], base, "'a', which is the one that is asked about"),
        ([base], base, "or none"),
        ([b], b, "read without an adapter"),
        ([a - base], base, "difference already"),
        ([less], base, "less what siblings have in common already"),
    ):
        with pytest.raises(IncompatibleActivationsError, match=message):
            a.without_common(siblings, plain)
    with pytest.raises(IncompatibleActivationsError, match="less what siblings have in common"):
        less.amplified(base, by=2)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(IncompatibleActivationsError, match="from 0 to 1"):
            a.without_common([b], base, share=share)


def test_non_finite_vectors_are_refused_and_named() -> None:
    acts = make()
    acts.vectors[1, 2, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 4, position 5"):
        acts[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_and_loaded_is_the_same(
    model: TracedModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    chat = [{"role": "user", "content": "héllo <b>wörld</b> 🙂"}]
    model.hf_model.to(dtype)
    a, b = (model.activations(chat, layers=[1, 2], adapter=n) for n in ("a", "b"))
    for acts in (a[2:5], a.layer(2) - b.layer(2)):
        acts.save(tmp_path / "deep" / "acts.safetensors")
        loaded = Activations.load(tmp_path / "deep" / "acts.safetensors")
        assert torch.equal(loaded.vectors, acts.vectors)
        assert loaded.vectors.dtype == acts.vectors.dtype
        for field in ("layers", "context_ids", "positions", "token_ids", "tokens", "offsets"):
            assert getattr(loaded, field) == getattr(acts, field), field
        assert loaded.text == acts.text
        assert loaded.provenance == acts.provenance
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["acts.safetensors"]


@given(data=st.data())
def test_a_damaged_file_is_an_error_never_other_activations(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "acts.safetensors"
    acts = make(3)
    acts.save(path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        # In the vectors, which safetensors itself does not protect.
        place = len(raw) - 1 - data.draw(st.integers(0, acts.vectors.nbytes - 1))
        raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(CorruptedFileError, match=r"acts\.safetensors"):
        Activations.load(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        Activations.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CorruptedFileError, match="not written by"):
        Activations.load(path)
    metadata = {"aotoolkit_activations": json.dumps({"format": 99})}
    save_file({"vectors": torch.zeros(1, 1, 2)}, path, metadata)
    with pytest.raises(CorruptedFileError, match="another version"):
        Activations.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "acts.safetensors"
    make(3).save(path)

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("aotoolkit.tracing.activations.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        make(4).save(path)
    assert len(Activations.load(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_html_is_escaped() -> None:
    acts = make(1)
    object.__setattr__(acts, "tokens", ("<script>alert(1)</script>",))
    shown = acts._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def golden_reads(folder: Path, dtype: torch.dtype) -> dict[str, Activations]:
    model = TracedModel(
        AutoModelForCausalLM.from_pretrained(
            folder / "model", attn_implementation="eager", dtype=dtype
        ),
        AutoTokenizer.from_pretrained(folder / "model"),
    )
    model.load_adapter("target", folder / "adapters" / "target")
    return {
        case["id"]: model.activations(
            case["target_messages"],
            layers=case["layer"],
            adapter=case["target_adapter"],
            positions=case["positions"],
            add_generation_prompt=case["add_generation_prompt"],
        )
        for case in json.loads((folder / "activation_oracle.json").read_text())["cases"]
    }


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_reads_of_the_reference_implementation(family: str, shared: Path) -> None:
    folder = shared / "golden" / family
    cases = json.loads((folder / "activation_oracle.json").read_text())["cases"]
    expected = load_file(folder / "activation_oracle.safetensors")
    single, double = (golden_reads(folder, dtype) for dtype in (torch.float32, torch.float64))
    for case in cases:
        acts = single[case["id"]]
        assert list(acts.context_ids) == case["target_input_ids"]
        assert list(acts.positions) == [p % len(acts.context_ids) for p in case["positions"]]
        reference = expected[f"{case['id']}.activations"]
        # The recorded values are float32 themselves, up to 7e-5 from float64 here, and processors
        # sum in different orders: what they can be held to is their own rounding.
        rounding = (reference.double() - double[case["id"]].vectors[0]).abs().max().item()
        assert rounding < 1e-4
        torch.testing.assert_close(acts.vectors[0], reference, rtol=0, atol=2 * rounding)


def test_provenance_says_what_was_run(
    model: TracedModel, adapter_folder: Callable[..., Path]
) -> None:
    acts = model.activations([{"role": "user", "content": "hi"}], layers=[0.5], adapter="b")
    provenance = acts.provenance
    assert acts.layers == (2,)
    assert (provenance.model, provenance.adapter, acts.adapter) == ("tiny", "b", "b")
    assert provenance.adapter_digest == model.adapter_digest("b") != model.adapter_digest("a")
    assert provenance.base_digest == model.base_digest
    assert provenance.chat_template_digest is not None
    assert provenance.dtype == "float32"
    assert {"aotoolkit", "torch", "transformers", "peft", "nnsight"} <= set(provenance.versions)
    text = model.activations("hi", layers=[0])
    assert text.provenance.chat_template_digest is None
    assert text.provenance.adapter is None is text.provenance.adapter_digest
