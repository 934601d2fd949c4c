"""remote=True: refused unless all is on the Hub; the remote path itself, simulated here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from aotoolkit.errors import RemoteError
from aotoolkit.tracing import TracedModel, remote


def test_a_model_in_memory_is_refused(model: TracedModel) -> None:
    with pytest.raises(RemoteError, match="an object in memory"):
        model.activations("Give me a hint.", layers=[1], remote=True)


def test_a_local_folder_is_refused(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    traced = TracedModel.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(RemoteError, match="on the Hugging Face Hub"):
        traced.activations("Give me a hint.", layers=[1], remote=True)


def test_an_adapter_of_this_machine_is_refused(
    model: TracedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_hub_id", "owner/model")
    with pytest.raises(RemoteError, match="adapter 'a'"):
        model.activations("Give me a hint.", layers=[1], adapter="a", remote=True)


@pytest.mark.parametrize("adapter", [None, "a"])
def test_the_remote_path_reads_what_the_local_one_does(
    tmp_path: Path,
    adapter: str | None,
    adapter_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nnsight's serverless dry run: serialised, sent through the remote backend, run here."""
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    traced = TracedModel.from_pretrained(tmp_path, device="cpu", adapters={"a": adapter_folder()})
    monkeypatch.setattr(
        "nnsight.modeling.huggingface.HuggingFaceModel._remoteable_model_key",
        lambda self: str(tmp_path),
    )
    ids, mask = traced.pad([[5, 6, 7, 8], [9, 10]])
    read = remote.read(
        str(tmp_path),
        revision=None,
        adapter_id=str(adapter_folder()) if adapter else None,
        blocks_path=traced.blocks_path,
        layers=(2, 0),
        inputs=traced._inputs(ids, mask),
        remote="local",
    )
    expected = traced.residuals(ids, mask, layers=[2, 0], adapter=adapter)
    at = mask.bool()
    torch.testing.assert_close(read[:, at], expected[:, at], rtol=1e-5, atol=1e-5)
