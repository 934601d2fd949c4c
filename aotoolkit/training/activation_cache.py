"""The base's activations on disk, so that a mixture is read once and trained on many times.

Only the positions that some example reads are stored, untransformed and in the model's own dtype: a
mixture's activations are hundreds of times larger than its text, and a transform or an injection
formula can then be changed without reading anything again.

A cache is a folder of safetensors shards. Each is written under another name and renamed when it is
whole, so a fill that was killed goes on with what is missing. Every shard names the base and the
layers that it was read from, and every entry is found by the digest of its context's token ids.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from aotoolkit.atomic import replacing
from aotoolkit.data.example import Example
from aotoolkit.errors import ActivationCacheError, CorruptedFileError
from aotoolkit.tracing import TracedModel
from aotoolkit.training.reading import ContextRead, plan_reads, read_contexts

CACHE_FILE = "activation_cache.json"
FORMAT = 1
SHARD_BYTES = 256 * 2**20
_SHARDS = "shard-*.safetensors"


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """What a cache of some examples takes.

    Attributes:
        contexts: how many contexts are run.
        context_tokens: their tokens, up to the last that is read.
        positions: how many positions are stored, each at all layers.
        bytes: what they take on disk.
    """

    contexts: int
    context_tokens: int
    positions: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e9:.3g} GB: {self.positions:,} positions of {self.contexts:,} "
            f"contexts ({self.context_tokens:,} tokens to read)"
        )


class ActivationCache:
    """Activations of one base at some layers, looked up by context.

    Args:
        folder: what `fill` wrote.

    Attributes:
        folder: where it is.
        base_digest: `TracedModel.base_digest` of the base.
        layers: block indices, increasing; every entry has them all.

    Raises:
        ActivationCacheError: there is no cache, or a shard of it belongs to another one.
        CorruptedFileError: a shard is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / CACHE_FILE
        if not path.is_file():
            raise ActivationCacheError(
                f"There is no activation cache in {self.folder} ({CACHE_FILE} is absent). Fill one "
                "with `aotoolkit data cache`."
            )
        described = _read_description(path)
        if described.get("format") != FORMAT:
            raise ActivationCacheError(
                f"The cache in {self.folder} has format {described.get('format')}; this aotoolkit "
                f"reads {FORMAT}. Fill it again in another folder."
            )
        try:
            self.base_digest: str = described["base_digest"]
            self.layers: tuple[int, ...] = tuple(described["layers"])
            self.dtype: str = described["dtype"]
        except (KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        self._shards: list[Any] = []
        # digest of a context -> shard, first row, row after the last
        self._entries: dict[bytes, tuple[int, int, int]] = {}
        for shard in sorted(self.folder.glob(_SHARDS)):
            self._open(shard)

    def __len__(self) -> int:
        """How many contexts it holds."""
        return len(self._entries)

    @classmethod
    def estimate(cls, model: TracedModel, examples: Iterable[Example]) -> CacheSize:
        """What a cache of these examples takes, before anything is read."""
        return _size(model, _reads_of_all_layers(examples))

    @classmethod
    def fill(
        cls,
        model: TracedModel,
        examples: Iterable[Example],
        folder: str | Path,
        *,
        shard_bytes: int = SHARD_BYTES,
        progress: bool = True,
    ) -> "ActivationCache":
        """Reads what the examples need and the folder does not have yet.

        One process fills a folder at a time.

        Args:
            model: the base; read with every adapter off.
            examples: their contexts are stored at the positions that they read, at all the layers
                that any of them reads.
            folder: made if it is not there. A cache there is added to.
            shard_bytes: size of a shard, which is also what a kill loses at most.
            progress: show a progress bar.

        Raises:
            ActivationCacheError: the folder holds a cache of another base or of other layers, or
                the disk is too small.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        reads = _reads_of_all_layers(examples)
        if not reads:
            raise ActivationCacheError("No example reads anything, so there is nothing to cache.")
        if not (folder / CACHE_FILE).exists():
            _describe(folder, model, reads[0].layers)
        cache = cls(folder)
        cache.check_base(model)
        cache._check_layers(reads[0].layers, exactly=True)
        missing = [cache._with_held(read) for read in reads if not cache._has(read)]
        size = _size(model, missing)
        free = shutil.disk_usage(folder).free
        if size.bytes > free:
            raise ActivationCacheError(
                f"The cache still needs {size}, and {folder} has {free / 1e9:.3g} GB free. Choose "
                "another disk, fewer layers or fewer examples, or train without a cache."
            )
        with tqdm(
            total=size.bytes, unit="B", unit_scale=True, desc="cache", disable=not progress
        ) as bar:
            for part in _parts(model, missing, shard_bytes):
                cache._write(model, part)
                bar.update(_size(model, part).bytes)
        return cache

    def check_base(self, model: TracedModel) -> None:
        """Refuses a model whose base is not the one that was read.

        Raises:
            ActivationCacheError: it is not.
        """
        if not model.has_base_digest(self.base_digest):
            raise ActivationCacheError(
                f"The cache in {self.folder} is of the base {self.base_digest[:12]}, the model "
                f"{model.name!r} is {model.base_digest[:12]}. Use the base that was read, or fill "
                "a cache of this one in another folder."
            )
        # The digest is that of weights, however they were widened; activations are not.
        if self.dtype != _dtype_of(model):
            raise ActivationCacheError(
                f"The cache in {self.folder} was read in {self.dtype}, the model {model.name!r} is "
                f"in {_dtype_of(model)}. Load it in that dtype, or fill a cache of this one in "
                "another folder."
            )

    def check_examples(self, examples: Iterable[Example]) -> None:
        """Notices before a run what it would not find here part-way.

        Raises:
            ActivationCacheError: a layer, a context or a position of an example is not here.
        """
        context: tuple[int, ...] | None = None
        held: frozenset[int] | None = None
        count, missing = 0, 0
        for example in examples:
            if example.evidence == "zero":
                continue
            self._check_layers(example.layers)
            if example.context_ids != context:
                context, held = example.context_ids, self._held(example.context_ids)
            count += 1
            missing += held is None or not held.issuperset(example.positions)
        if missing:
            raise ActivationCacheError(
                f"The cache in {self.folder} lacks what {missing:,} of {count:,} examples read. "
                "Fill it with the same mixture and seed (`aotoolkit data cache`, which goes on "
                "where it was stopped), or train without a cache."
            )

    def lookup(
        self, reads: Sequence[ContextRead]
    ) -> Iterator[tuple[ContextRead, Float[Tensor, "l p d"]]]:
        """Each read with its vectors, from disk.

        Raises:
            ActivationCacheError: a layer, a context or a position is not in the cache.
        """
        for read in reads:
            self._check_layers(read.layers)
        missing = [read for read in reads if not self._has(read)]
        if missing:
            raise ActivationCacheError(
                f"{len(missing)} of {len(reads)} contexts, or positions of them, are not in the "
                f"cache in {self.folder}, which holds {len(self)}. Fill it with the same mixture "
                "and seed (`aotoolkit data cache`, which goes on where it was stopped), or train "
                "without a cache."
            )
        for read in reads:
            shard, start, stop = self._entries[_context_digest(read.context_ids)]
            rows = self._shards[shard].get_slice("vectors")[start:stop]
            at = torch.searchsorted(self._positions(shard, start, stop), _tensor(read.positions))
            layers = _tensor([self.layers.index(layer) for layer in read.layers])
            yield read, rows[at[None, :], layers[:, None]]

    def _open(self, path: Path) -> None:
        try:
            shard: Any = safe_open(str(path), framework="pt")
            metadata = shard.metadata() or {}
            digests = shard.get_tensor("context_digests")
            starts = shard.get_tensor("context_starts").tolist()
        except (SafetensorError, OSError) as error:
            raise CorruptedFileError(
                f"The shard {path} cannot be read: {error}. Delete it and fill the cache again; "
                "only what it held is read anew."
            ) from error
        if metadata != self._metadata:
            raise ActivationCacheError(
                f"The shard {path} was not written for this cache: it says {metadata}, the cache "
                f"is {self._metadata}. Delete it, or keep caches in folders of their own."
            )
        index = len(self._shards)
        self._shards.append(shard)
        for row, digest in enumerate(digests.numpy()):
            # Of two entries of a context the later one has the positions of both.
            self._entries[digest.tobytes()] = (index, starts[row], starts[row + 1])

    @property
    def _metadata(self) -> dict[str, str]:
        return {"base_digest": self.base_digest, "layers": ",".join(map(str, self.layers))}

    def _check_layers(self, layers: tuple[int, ...], *, exactly: bool = False) -> None:
        if set(layers) - set(self.layers) or (exactly and layers != self.layers):
            raise ActivationCacheError(
                f"The cache in {self.folder} has the layers {list(self.layers)}, the examples read "
                f"{list(layers)}. Fill a cache of these layers in another folder."
            )

    def _positions(self, shard: int, start: int, stop: int) -> Tensor:
        return self._shards[shard].get_slice("positions")[start:stop]

    def _held(self, context_ids: tuple[int, ...]) -> frozenset[int] | None:
        """The positions that are stored of a context; None where it is not here."""
        entry = self._entries.get(_context_digest(context_ids))
        return None if entry is None else frozenset(self._positions(*entry).tolist())

    def _with_held(self, read: ContextRead) -> ContextRead:
        """A read of the positions that are stored of its context as well.

        The new entry stands in for the old one, so it must serve whoever needed that.
        """
        positions = {*read.positions, *(self._held(read.context_ids) or ())}
        return dataclasses.replace(read, positions=tuple(sorted(positions)))

    def _has(self, read: ContextRead) -> bool:
        entry = self._entries.get(_context_digest(read.context_ids))
        return entry is not None and bool(
            torch.isin(_tensor(read.positions), self._positions(*entry)).all()
        )

    def _write(self, model: TracedModel, reads: Sequence[ContextRead]) -> None:
        """Reads some contexts and stores them as one more shard, whole or not at all."""
        vectors, positions, digests, starts = [], [], [], [0]
        for read, read_vectors in read_contexts(model, reads):
            vectors.append(read_vectors.transpose(0, 1).cpu())
            positions += read.positions
            digests.append(array("B", _context_digest(read.context_ids)))
            starts.append(starts[-1] + len(read.positions))
        # After all that are there, since of two entries of a context the later one counts.
        taken = [int(path.stem.rpartition("-")[2]) for path in self.folder.glob(_SHARDS)]
        path = self.folder / f"shard-{max(taken, default=-1) + 1:05}.safetensors"
        partial = path.with_name(f".{path.name}.partial")
        try:
            tensors = {
                "vectors": torch.cat(vectors),
                "positions": _tensor(positions),
                "context_digests": torch.tensor(digests, dtype=torch.uint8),
                "context_starts": _tensor(starts),
            }
            save_file(tensors, partial, metadata=self._metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (SafetensorError, OSError) as error:
            partial.unlink(missing_ok=True)
            raise ActivationCacheError(
                f"The shard {path} could not be written: {error}. The {len(self._shards)} before "
                "it are whole; make room and fill the cache again, and it goes on from there."
            ) from error
        self._open(path)


def _reads_of_all_layers(examples: Iterable[Example]) -> list[ContextRead]:
    # Zero vectors are made, not read.
    reads = plan_reads([example for example in examples if example.evidence != "zero"])
    layers = tuple(sorted({layer for read in reads.values() for layer in read.layers}))
    return [ContextRead(read.context_ids, layers, read.positions) for read in reads.values()]


def _size(model: TracedModel, reads: Sequence[ContextRead]) -> CacheSize:
    positions = sum(len(read.positions) for read in reads)
    layers = len(reads[0].layers) if reads else 0
    return CacheSize(
        contexts=len(reads),
        context_tokens=sum(read.positions[-1] + 1 for read in reads),
        positions=positions,
        # Beside the vectors: a position's own 8 bytes, a context's digest and first row.
        bytes=positions * (layers * model.d_model * model.dtype.itemsize + 8) + len(reads) * 40,
    )


def _parts(
    model: TracedModel, reads: Sequence[ContextRead], shard_bytes: int
) -> Iterator[list[ContextRead]]:
    part: list[ContextRead] = []
    size = 0
    for read in reads:
        own = _size(model, [read]).bytes
        if part and size + own > shard_bytes:
            yield part
            part, size = [], 0
        part.append(read)
        size += own
    if part:
        yield part


def _read_description(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ActivationCacheError:
    return ActivationCacheError(
        f"{path} is damaged ({type(error).__name__}: {error}). Delete the folder and fill the "
        "cache again."
    )


def _describe(folder: Path, model: TracedModel, layers: tuple[int, ...]) -> None:
    described = {
        "format": FORMAT,
        "base_digest": model.base_digest,
        "layers": layers,
        "model": model.name,
        "dtype": _dtype_of(model),
    }
    with replacing(folder / CACHE_FILE) as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _dtype_of(model: TracedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _context_digest(context_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(array("q", context_ids)).digest()


def _tensor(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)
