"""Digests of weights and tokenizers: what proves which model and which adapter was read."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def sha256_of(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """SHA-256 over named tensors and a JSON-able description."""
    return sha256_of_listing(listing(tensors), description)


def sha256_of_listing(tensors: str, description: Mapping[str, Any]) -> str:
    """`sha256_of` tensors that `listing` has read already."""
    return hashlib.sha256(
        (json.dumps(description, sort_keys=True, default=str) + tensors).encode()
    ).hexdigest()


def listing(tensors: Mapping[str, Tensor]) -> str:
    """A line for each tensor: name, shape and SHA-256.

    Half precision is hashed as float32, which holds it exactly: one checkpoint has one digest,
    whether it was loaded as it is stored or widened.
    """
    names = sorted(tensors)
    # hashlib lets other threads run while it hashes, so a large model takes all cores.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(lambda name: _tensor_digest(tensors[name]), names))
    return "".join(
        f"{name} {tuple(tensors[name].shape)} {digest}\n"
        for name, digest in zip(names, digests, strict=True)
    )


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    raw = values.contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw).hexdigest()  # pyright: ignore[reportArgumentType]


class DigestCache:
    """Computes a digest again only when the tensors look changed.

    They do when a tensor was replaced, was written in place (torch's version counter), or, for an
    adapter, has another sum: writes through `.data` leave the version counter alone.
    """

    def __init__(self, *, sums: bool = True) -> None:
        self._sums = sums
        self._key: Any = None
        self._digest = ""

    def get(
        self,
        tensors: Mapping[str, Tensor],
        compute: Callable[[], str],
        numbers: Mapping[str, float] | None = None,
    ) -> str:
        """The digest of `tensors`, from `compute` where it is not known."""
        key = [
            [(tensor.data_ptr(), tensor._version) for tensor in tensors.values()],
            list((numbers or {}).values()),
        ]
        if self._sums and tensors:
            sums: dict[torch.device, list[Tensor]] = {}
            with torch.no_grad():
                for tensor in tensors.values():
                    one = tensor.sum(dtype=torch.float32)
                    sums.setdefault(one.device, []).append(one)
            # One transfer for each device that the layers are spread over.
            key += [torch.stack(own).tolist() for own in sums.values()]
        if key != self._key:
            self._digest = compute()
            self._key = key
        return self._digest


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what decides a prompt's ids: vocabulary, splits and merges, chat template.

    Splits and merges are seen through a probe text, since their stored form changes with the
    version of the tokenizers library while their effect does not.
    """
    probe = "Layer: 12\n ? ? \nWhat's it, naïvely? 'Yes' or 'NO': 3.14  10,000 — ok\t{x} 你好"
    parts = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer(probe, add_special_tokens=False)["input_ids"],
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
