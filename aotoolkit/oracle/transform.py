"""What is done to activation vectors before they are injected.

Norm-matched injection keeps only a vector's direction, and the direction of a template token
(a reply header, a full stop) is almost all constant: what differs between two prompts can be a
thousandth of its squared norm. Taking the constant part away hands the oracle what varies.

Eight kinds: `none`; `centred_by_layer` (minus the layer's mean); `centred_by_token` (minus the mean
of the layer at that token id, shrunk to the layer's mean where the token was seen rarely);
`whitened` (minus the layer's mean, then the inverse square root of the layer's covariance);
`mapped` (minus the layer's mean, then a linear map, fitted on questions with answers, into the
space of the model's own input embeddings); `mapped_by_token` (two such maps, added: one of what the
token itself is, its mean, and one of what this vector has beyond that); `mapped_pooled` (the same,
and to each vector the mean of all that are read with it is added, at its length);
`mapped_recalled` (an oracle learns with `mapped_pooled`; when it is asked, what is added is what
that mean recalls of the answers that the map was fitted to). The statistics come from the *base*
model on its own text, are stored beside the oracle's weights, and are applied in the same way to
activations of the base and of any adapter.

A map has what the others lack, a target: it takes a vector towards the words of its answer, so that
words which were never an answer in training have a place there too (docs/nano_tried.md has what was
measured). The nearest published method is the affine map between layers of Patchscopes
(arXiv:2401.06102), which is fitted to what another layer holds.

One map for both has to take a noun at its own token to that noun, and the same noun among forty
tokens of a text about something else to nothing. Two need not choose: which token stands there is
taken away before the map of the state sees a vector.

What a text is about is spread over its tokens, a little in each and much noise. A mean over them
holds it, and an oracle learns slowly to take that mean by attending to many placeholders at once;
given the mean, it learns to read it in a fraction of the examples (docs/nano_tried.md).

The mean of a fine-tuned model's vectors was nearest to the right answer more often than an oracle
named it. So `mapped_recalled` takes it to the answers: one step of retrieval in a modern Hopfield
network (arXiv:2008.02217), whose patterns are the answers of the map. Only when it is asked: an
oracle that was trained on what is recalled as well read less than one that was not (one seed each,
docs/nano_tried.md). A vector read by itself, which holds above all what its token says, is compared
with the answers. What is read over several tokens is compared with their keys: what an answer has
in common with others, without what it alone has, such as a name, since a model may hold all that is
true of a thing without its name. A key counts by how much more like it that is than the base's
texts about other answers are, over the root of the deviation there. Without the division fewer
answers that none of these texts was about were named; divided by the whole deviation, fewer of
those that some were about (docs/nano_tried.md, which says too that subtracting the mean was worth
nothing there).
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aotoolkit.atomic import replacing
from aotoolkit.errors import CorruptedFileError, NonFiniteError
from aotoolkit.oracle.contract import Transform

# The kinds that tokens are mapped apart in.
MappedByToken = Literal["mapped_by_token", "mapped_pooled", "mapped_recalled"]

TRANSFORM_FILE = "vector_transform.safetensors"

# A token seen n times keeps n / (n + SHRINKAGE) of its own mean; the rest is the layer's.
SHRINKAGE = 4.0
# Share of the mean eigenvalue added to each before whitening, so that noise is not blown up.
WHITENING_RIDGE = 1e-3
# Share of each coordinate's variance added to it before the map is solved for: ridge regression on
# standardised coordinates.
MAPPING_RIDGE = 0.02
# The same where tokens have a map of their own: what is left varies far less from token to token.
TOKEN_MAPPING_RIDGE = 1e-3
# What a cosine or a key's score is multiplied with before the softmax over answers. Of the keys of
# the embedded world a score is about twice a cosine.
RECALL_SHARPNESS = 20.0
# Of a cosine: below it two texts do not differ but for rounding.
LEAST_SPREAD = 1e-3
# What only a transform that recalls has.
RECALLING = ("answers", "keys", "key_mean", "key_spread")


@dataclass(frozen=True, eq=False)
class VectorTransform:
    """A transform and its statistics.

    Attributes:
        kind: which transform.
        layers: block indices that the statistics are for, in order.
        mean: `l d`, the layer's mean, or that of the token means where tokens are mapped apart;
            absent for `none`.
        token_mean: `l v d`, for `centred_by_token` and where tokens are mapped apart.
        whitening: `l d d`, for `whitened`.
        mapping: `l d d`, for `mapped`, and of a vector minus its token's mean where tokens are
            mapped apart.
        token_mapping: `l d d`, of that mean, where tokens are mapped apart: for `mapped_by_token`,
            `mapped_pooled` and `mapped_recalled`.
        answers: `a d`, for `mapped_recalled`, as are those below: the different answers that the
            map was fitted to, minus their mean, at length one.
        keys: `a d`, what each is found by, minus their mean, at length one.
        key_mean: `l a`, mean cosine of a key with what the map makes of the base's texts about
            other answers.
        key_spread: `l a`, its standard deviation there.
    """

    kind: Transform = "none"
    layers: tuple[int, ...] = ()
    mean: Tensor | None = None
    token_mean: Tensor | None = None
    whitening: Tensor | None = None
    mapping: Tensor | None = None
    token_mapping: Tensor | None = None
    answers: Tensor | None = None
    keys: Tensor | None = None
    key_mean: Tensor | None = None
    key_spread: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Transform):
            raise ValueError(
                f"Unknown vector transform {self.kind!r}; allowed are "
                f"{', '.join(get_args(Transform))}."
            )
        needed = {
            "none": (),
            "centred_by_layer": ("mean",),
            "centred_by_token": ("mean", "token_mean"),
            "whitened": ("mean", "whitening"),
            "mapped": ("mean", "mapping"),
            "mapped_by_token": ("mean", "token_mean", "mapping", "token_mapping"),
            "mapped_pooled": ("mean", "token_mean", "mapping", "token_mapping"),
            "mapped_recalled": (
                *("mean", "token_mean", "mapping", "token_mapping"),
                *("key_mean", "key_spread"),
            ),
        }[self.kind]
        for name in needed:
            statistic = getattr(self, name)
            if statistic is None or statistic.shape[0] != len(self.layers):
                raise ValueError(
                    f"The transform {self.kind!r} needs {name} for each of the layers "
                    f"{list(self.layers)}, got {None if statistic is None else statistic.shape}."
                )
        for name in RECALLING:
            there = getattr(self, name) is not None
            if (self.kind == "mapped_recalled") != there:
                raise ValueError(
                    "Answers to recall and their keys belong to the transform 'mapped_recalled' "
                    f"and no other; this is {self.kind!r} {'with' if there else 'without'} {name}."
                )
        sizes = {
            tensor.shape[-2 if name in ("answers", "keys") else -1]
            for name in RECALLING
            if (tensor := getattr(self, name)) is not None
        }
        if len(sizes) > 1:
            raise ValueError(f"There are {sorted(sizes)} answers, keys and figures of them.")

    @property
    def pools(self) -> bool:
        """Whether a vector depends on those that are read with it."""
        return self.kind in ("mapped_pooled", "mapped_recalled")

    @property
    def as_trained(self) -> "VectorTransform":
        """What an oracle learns with: this, but that nothing is recalled."""
        if self.kind != "mapped_recalled":
            return self
        return replace(self, kind="mapped_pooled", **dict.fromkeys(RECALLING))

    def apply(
        self,
        vectors: Float[Tensor, "l p d"],
        *,
        layers: Sequence[int],
        token_ids: Sequence[int],
        difference: bool = False,
        alone: bool = False,
    ) -> Float[Tensor, "l p d"]:
        """Transforms vectors read at `layers` and at tokens `token_ids`, all that are asked about.

        Args:
            vectors: `l p d`.
            layers: the block index of each `l`.
            token_ids: the token id at each `p`.
            difference: the vectors are the difference of two reads on the same tokens, from
                which the means have cancelled: only the linear part is applied. Keys are weighed as
                for whole texts.
            alone: each position is asked about by itself, so that none learns of the others.

        Raises:
            ValueError: A layer has no statistics, or the shapes disagree.
        """
        if vectors.shape[:2] != (len(layers), len(token_ids)):
            raise ValueError(
                f"Vectors of shape {tuple(vectors.shape)} do not fit {len(layers)} layers and "
                f"{len(token_ids)} tokens; expected [l p d]."
            )
        if self.kind == "none":
            return vectors
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            raise ValueError(
                f"No statistics of the transform {self.kind!r} for layer {missing}: it was fitted "
                f"on {list(self.layers)}. Read one of those layers."
            )
        index = torch.tensor([self.layers.index(layer) for layer in layers], device=vectors.device)
        result = vectors.float()
        mean, token_mean, token_part = self.mean, self.token_mean, None
        if not difference:
            assert mean is not None
            means = mean.to(vectors.device)[index][:, None].float()
            if token_mean is not None:
                ids = torch.as_tensor(token_ids, device=vectors.device)
                own = token_mean.to(vectors.device)[index[:, None], ids[None, :]].float()
                if self.token_mapping is not None:
                    token_part = (own - means) @ self.token_mapping.to(vectors.device)[index]
                means = own
            result = result - means
        matrix = self.mapping if self.mapping is not None else self.whitening
        if matrix is not None:
            result = result @ matrix.to(vectors.device)[index].float()
        if token_part is not None:
            result = result + token_part
        if self.kind == "mapped_pooled" and not alone:
            result = _with_mean(result)
        if self.answers is not None:
            if alone or result.shape[1] == 1:
                recalled = self._recalled_by_answer(result)
            else:
                recalled = self._recalled_by_key(result.mean(1, keepdim=True), index)
            result = (result + result.norm(dim=-1, keepdim=True) * recalled) / 2
        return result.to(vectors.dtype)

    def _recalled_by_answer(self, vectors: Float[Tensor, "l p d"]) -> Float[Tensor, "l p d"]:
        """The mean of the answers' directions, weighted by how like each of them a vector is."""
        assert self.answers is not None
        answers = self.answers.to(vectors.device).float()
        cosines = torch.nn.functional.normalize(vectors, dim=-1) @ answers.T
        return torch.softmax(RECALL_SHARPNESS * cosines, dim=-1) @ answers

    def _recalled_by_key(
        self, vectors: Float[Tensor, "l p d"], index: Int[Tensor, " l"]
    ) -> Float[Tensor, "l p d"]:
        """The same, weighted by how much more like each one's key it is than other texts are."""
        assert self.answers is not None
        assert self.keys is not None
        assert self.key_mean is not None
        assert self.key_spread is not None
        answers, keys = (t.to(vectors.device).float() for t in (self.answers, self.keys))
        usual, spread = (
            t.to(vectors.device)[index][:, None].float() for t in (self.key_mean, self.key_spread)
        )
        cosines = torch.nn.functional.normalize(vectors, dim=-1) @ keys.T
        scores = (cosines - usual) / spread.sqrt()
        return torch.softmax(RECALL_SHARPNESS * scores, dim=-1) @ answers

    def _tensors(self) -> dict[str, Tensor]:
        names = ("mean", "token_mean", "whitening", "mapping", "token_mapping")
        return {
            name: tensor.contiguous()
            for name in (*names, *RECALLING)
            if (tensor := getattr(self, name)) is not None
        }

    @property
    def digest(self) -> str:
        """SHA-256 over kind, layers and statistics."""
        sha = hashlib.sha256(f"{self.kind} {self.layers}".encode())
        if self.answers is not None:
            sha.update(f"sharpness {RECALL_SHARPNESS}".encode())
        for name, tensor in sorted(self._tensors().items()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.cpu().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the statistics beside an oracle's weights, atomically; nothing for `none`."""
        if self.kind == "none":
            return
        path = Path(folder) / TRANSFORM_FILE
        metadata = {"kind": self.kind, "layers": ",".join(map(str, self.layers))}
        with replacing(path) as temporary:
            save_file(self._tensors(), temporary, metadata=metadata)

    @classmethod
    def load(cls, folder: str | Path) -> "VectorTransform":
        """Reads what `save` wrote; the identity where there is no file.

        Whether there *should* be one is the contract's to say: it names kind and digest, and
        `Oracle` compares them.

        Raises:
            CorruptedFileError: The file is damaged, or of an earlier version that had less in it.
        """
        path = Path(folder) / TRANSFORM_FILE
        if not path.exists():
            return cls()
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(
                kind=metadata["kind"],  # pyright: ignore[reportArgumentType]  # checked on creation
                layers=tuple(int(layer) for layer in metadata["layers"].split(",")),
                **tensors,
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CorruptedFileError(
                f"{path} does not hold the statistics of a vector transform: {error} Get the file "
                "again; one that an earlier version wrote is to be fitted again, by training the "
                "oracle again in another folder."
            ) from error


def _with_mean(vectors: Float[Tensor, "l p d"]) -> Float[Tensor, "l p d"]:
    """Each vector halfway to the mean over positions, taken at that vector's own length.

    The mean is far shorter than what it is the mean of, and directions are all that norm-matched
    injection keeps. One vector alone stays as it is.
    """
    mean = vectors.mean(1, keepdim=True)
    length = vectors.norm(dim=-1, keepdim=True)
    smallest = torch.finfo(vectors.dtype).tiny
    return (vectors + mean * (length / mean.norm(dim=-1, keepdim=True).clamp_min(smallest))) / 2


def fit_transform(
    kind: Transform,
    batches: Iterable[tuple[Float[Tensor, "l n d"], Sequence[int]]],
    *,
    layers: Sequence[int],
    vocabulary_size: int,
) -> VectorTransform:
    """Gathers the statistics of a transform in one pass.

    Args:
        kind: which transform; for those that map, see `fit_mapping` and `fit_mapping_by_token`.
        batches: pairs of vectors `l n d` read from the base model, and the `n` token ids there.
        layers: the block index of each `l`.
        vocabulary_size: number of token ids, `v`.

    Returns:
        The fitted transform; token means, by far the largest, in float16 unless one is too large
        for that, the rest in float32.

    Raises:
        ValueError: There was no vector to gather from.
        NonFiniteError: A vector held NaN or infinity.
    """
    if kind == "none":
        return VectorTransform()
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("No activations to gather statistics from; give at least one batch.")
    width = first[0].shape[-1]
    count = 0
    total = torch.zeros(len(layers), width, dtype=torch.double)
    square = None
    by_token = _TokenTotals(len(layers), width)
    for vectors, token_ids in itertools.chain([first], iterator):
        values = vectors.double()
        count += values.shape[1]
        total += values.sum(1)
        if kind == "whitened":
            product = values.transpose(1, 2) @ values
            square = product if square is None else square.add_(product)
        if kind == "centred_by_token":
            by_token.add(values, token_ids)
    mean = total / count
    if not bool(torch.isfinite(mean).all()):
        raise NonFiniteError(
            f"The activations to gather the statistics of the transform {kind!r} from hold NaN or "
            "infinity. Read them again, in bfloat16 or float32 if the model ran in float16."
        )
    token_mean = whitening = None
    if kind == "centred_by_token":
        token_mean = by_token.means(mean, vocabulary_size)
    if square is not None:
        covariance = square / count - mean[:, :, None] * mean[:, None, :]
        values, directions = torch.linalg.eigh(covariance)
        values = values.clamp(min=0)
        values = values + WHITENING_RIDGE * values.mean(-1, keepdim=True)
        whitening = directions @ torch.diag_embed(values.rsqrt()) @ directions.transpose(1, 2)
        whitening = whitening.float()
    return VectorTransform(kind, tuple(layers), mean.float(), token_mean, whitening)


def fit_mapping(
    pairs: Iterable[tuple[Float[Tensor, "l p d"], Float[Tensor, "d"]]],
    *,
    layers: Sequence[int],
) -> VectorTransform:
    """Fits the transform `mapped`: ridge regression from what is read to the answer's embedding.

    The mean over an example's positions is what the map is fitted on: being linear, it then takes
    each position to its part in the answer.

    Args:
        pairs: for each example, the vectors read for it and the mean input embedding of its
            answer's tokens, both of the base model.
        layers: the block index of each `l`.

    Raises:
        ValueError: There was no example.
        NonFiniteError: A vector held NaN or infinity.
    """
    read: list[Tensor] = []
    answers: list[Tensor] = []
    for vectors, answer in pairs:
        read.append(vectors.double().mean(1))
        answers.append(answer.double())
    inputs = _to_fit_on(read)
    mean = inputs.mean(1)
    mapping = _ridge(inputs - mean[:, None], torch.stack(answers), MAPPING_RIDGE)
    return VectorTransform("mapped", tuple(layers), mean.float(), mapping=mapping.float())


@dataclass(frozen=True, eq=False)
class MappedExample:
    """What one example gives to the fit of maps that tokens have apart; all of the base model.

    Attributes:
        vectors: `l p d`, what is read for it.
        token_ids: the token id at each `p`.
        answer: `d`, mean input embedding of its answer's tokens.
        key: `d`, the same of what its answer is found by; `mapped_recalled` alone needs it.
    """

    vectors: Tensor
    token_ids: Sequence[int]
    answer: Tensor
    key: Tensor


def fit_mapping_by_token(
    kind: MappedByToken,
    examples: Iterable[MappedExample],
    *,
    layers: Sequence[int],
    vocabulary_size: int,
) -> VectorTransform:
    """Fits the transforms that map tokens apart, both maps in one ridge regression.

    Args:
        kind: which of them; they have the same maps, and `mapped_recalled` the answers too.
        examples: what is read for each and what it is to become.
        layers: the block index of each `l`.
        vocabulary_size: number of token ids, `v`.

    Raises:
        ValueError: There was no example.
        NonFiniteError: A vector held NaN or infinity.
    """
    read: list[Tensor] = []
    token_ids: list[Sequence[int]] = []
    answers: list[Tensor] = []
    keys: list[Tensor] = []
    by_token: _TokenTotals | None = None
    count = 0
    for example in examples:
        values, ids = example.vectors.double(), example.token_ids
        by_token = by_token or _TokenTotals(len(layers), values.shape[-1])
        by_token.add(values, ids)
        count += len(ids)
        read.append(values.mean(1))
        token_ids.append(ids)
        answers.append(example.answer.double())
        keys.append(example.key.double())
    inputs = _to_fit_on(read)
    assert by_token is not None, "there are examples"
    token_mean = by_token.means(by_token.sum() / count, vocabulary_size)
    tokens = torch.stack([token_mean[:, ids].double().mean(1) for ids in token_ids], dim=1)
    mean = tokens.mean(1)
    # What a vector has beyond its token's mean is about zero on average already.
    features = torch.cat([inputs - tokens, tokens - mean[:, None]], dim=-1)
    targets = torch.stack(answers)
    both = _ridge(features, targets, TOKEN_MAPPING_RIDGE)
    state, token = both.float().chunk(2, dim=1)
    recall: dict[str, Tensor] = {}
    if kind == "mapped_recalled":
        spans = torch.tensor([len(ids) > 1 for ids in token_ids])
        recall = _recall(features @ both, targets, torch.stack(keys), spans)
    return VectorTransform(
        kind,
        tuple(layers),
        mean.float(),
        token_mean=token_mean,
        mapping=state,
        token_mapping=token,
        **recall,
    )


def _recall(
    mapped: Float[Tensor, "l n d"],
    targets: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    spans: Bool[Tensor, " n"],
) -> dict[str, Tensor]:
    """The answers, once each, their keys, and how like these the texts about other answers are.

    Those about the answer itself are left out: a key that no text is about would be preferred for
    that alone. Keys are for what is read over several tokens, so such texts are compared, where
    there are any.
    """
    distinct, which = torch.unique(targets, dim=0, return_inverse=True)
    first = torch.stack([(which == number).nonzero()[0, 0] for number in range(len(distinct))])
    # From where the map has its zero: their mean over examples.
    answers = torch.nn.functional.normalize(distinct - targets.mean(0), dim=-1)
    directions = torch.nn.functional.normalize(keys[first] - keys.mean(0), dim=-1)
    asked = spans if bool(spans.any()) else torch.ones_like(spans)
    own = which[asked][:, None] == torch.arange(len(distinct))
    means: list[Tensor] = []
    spreads: list[Tensor] = []
    for vectors in mapped[:, asked]:
        cosines = torch.nn.functional.normalize(vectors, dim=-1) @ directions.T
        usual = cosines.masked_fill(own, torch.nan).nanmean(0)
        square = (cosines - usual).square().masked_fill(own, torch.nan).nanmean(0)
        # Where there is no other answer there is nothing to compare with.
        means.append(usual.nan_to_num(0.0))
        spreads.append(square.sqrt().nan_to_num(1.0).clamp_min(LEAST_SPREAD))
    return {
        "answers": answers.float(),
        "keys": directions.float(),
        "key_mean": torch.stack(means).float(),
        "key_spread": torch.stack(spreads).float(),
    }


def _to_fit_on(read: Sequence[Float[Tensor, "l d"]]) -> Float[Tensor, "l n d"]:
    if not read:
        raise ValueError("No examples to fit the map on; give at least one.")
    inputs = torch.stack(list(read), dim=1)
    if not bool(torch.isfinite(inputs).all()):
        raise NonFiniteError(
            "The activations to fit the map on hold NaN or infinity. Read them again, in bfloat16 "
            "or float32 if the model ran in float16."
        )
    return inputs


def _ridge(
    inputs: Float[Tensor, "l n f"], targets: Float[Tensor, "n d"], ridge: float
) -> Float[Tensor, "l f d"]:
    """From centred inputs to targets minus their mean; the penalty in units of each variance."""
    targets = targets - targets.mean(0)
    covariance = inputs.transpose(1, 2) @ inputs / len(targets)
    variance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    cross = inputs.transpose(1, 2) @ targets / len(targets)
    return torch.linalg.solve(covariance + ridge * variance, cross)


class _TokenTotals:
    """Sums of vectors by token id, of the tokens that occur only: a vocabulary is far larger."""

    def __init__(self, num_layers: int, width: int) -> None:
        self._rows: dict[int, int] = {}
        self._total = torch.zeros(num_layers, 0, width, dtype=torch.double)
        self._count = torch.zeros(0, dtype=torch.double)

    def add(self, values: Float[Tensor, "l n d"], token_ids: Sequence[int]) -> None:
        rows = torch.tensor([self._rows.setdefault(int(i), len(self._rows)) for i in token_ids])
        missing = len(self._rows) - len(self._count)
        if missing > 0:
            # Room for as many again, so that it is copied seldom.
            room = max(missing, len(self._count))
            num_layers, _, width = self._total.shape
            more = torch.zeros(num_layers, room, width, dtype=torch.double)
            self._total = torch.cat([self._total, more], 1)
            self._count = torch.cat([self._count, torch.zeros(room, dtype=torch.double)])
        self._total.index_add_(1, rows, values)
        self._count.index_add_(0, rows, torch.ones(len(rows), dtype=torch.double))

    def sum(self) -> Float[Tensor, "l d"]:
        """Of all vectors."""
        return self._total.sum(1)

    def means(self, mean: Float[Tensor, "l d"], vocabulary_size: int) -> Float[Tensor, "l v d"]:
        """Each token's mean, shrunk to the layer's; float16 where that holds them all."""
        seen = len(self._rows)
        own = self._total[:, :seen] + SHRINKAGE * mean[:, None]
        own /= self._count[:seen, None] + SHRINKAGE
        largest = max(float(own.abs().max()), float(mean.abs().max()))
        overflows = largest > torch.finfo(torch.float16).max
        result = mean.new_empty(
            (len(mean), vocabulary_size, mean.shape[1]),
            dtype=torch.float32 if overflows else torch.float16,
        )
        result[:] = mean[:, None]
        result[:, torch.tensor(list(self._rows))] = own.to(result.dtype)
        return result
