"""Reading vectors through the model's own vocabulary, without training anything.

`LogitLens` (nostalgebraist, 2020), `TokenSimilarity` (the activation-token similarity of
arXiv:2510.01070), and `MeanDifferenceLens` (after the activation difference lens of
arXiv:2510.13900: what an adapter changes on prompts that have nothing to do with its purpose).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.arms import Kind
from aotoolkit.evals.baselines.vocabulary import answer_from_vocabulary, unembeddings
from aotoolkit.evals.items import SECONDS_BEFORE_PROGRESS, ArmAnswer, EvalItem
from aotoolkit.oracle.injection import Injection, injecting
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.encoding import Prompt

_VECTORS_AT_ONCE = 256
_ITEMS_AT_ONCE = 64


def unembed(
    model: TracedModel, vectors: Float[Tensor, "n d"], *, adapter: str | None = None
) -> Float[Tensor, "n v"]:
    """Logits of vectors, as if the last block had put them out.

    They are put in the place of its output, so that whatever the model does after it (norm, head,
    cap of the logits) is its own, and nothing has to be found by name.

    Args:
        model: The model.
        vectors: Residual-stream vectors.
        adapter: The adapter that is live.

    Returns:
        Logits, float32 on the model's device.
    """
    n = vectors.shape[0]
    injection = Injection(
        vectors=vectors.to(model.device),
        rows=torch.arange(n),
        cols=torch.zeros(n, dtype=torch.long),
        formula="replace",
    )
    ids = torch.zeros((n, 1), dtype=torch.long, device=model.device)
    with model.inference(adapter), injecting(model.blocks[-1], injection):
        output = model.hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return output.logits[:, 0].float()


def lens_log_probs(
    model: TracedModel,
    many: Sequence[Float[Tensor, "n d"]],
    *,
    adapter: str | None = None,
) -> Float[Tensor, "i v"]:
    """Log of the mean over an item's vectors of what each makes of the vocabulary, on the CPU.

    Args:
        model: The model.
        many: The vectors of each item, at least one.
        adapter: The adapter that is live.
    """
    owners = torch.cat([torch.full((len(v),), i) for i, v in enumerate(many)])
    vectors = torch.cat([v.float() for v in many])
    sums: Tensor | None = None
    for chunk, own in zip(
        vectors.split(_VECTORS_AT_ONCE), owners.split(_VECTORS_AT_ONCE), strict=True
    ):
        probabilities = unembed(model, chunk, adapter=adapter).softmax(-1).cpu()
        if sums is None:
            sums = torch.zeros(len(many), probabilities.shape[-1])
        sums.index_add_(0, own, probabilities)
    assert sums is not None, "there is at least one vector"
    return (sums / torch.tensor([[len(v)] for v in many])).log()


class LogitLens:
    """The model's own unembedding of what was read, averaged over positions and layers.

    The probabilities are averaged, as in arXiv:2505.14352, not the logits: one position that is
    sure counts. The target's adapter is live, in case it changes the norm or the head.
    """

    kind: Kind = "baseline"

    def __init__(self, model: TracedModel, *, name: str = "logit lens", top_k: int = 1) -> None:
        """A logit lens.

        Args:
            model: The target.
            name: As it stands in tables.
            top_k: How many tokens make a free answer: each is one guess.
        """
        self.model = model
        self.name = name
        self.top_k = top_k

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        by_adapter: dict[str | None, list[int]] = {}
        for index, item in enumerate(items):
            by_adapter.setdefault(item.adapter, []).append(index)
        answers: dict[int, ArmAnswer] = {}
        with tqdm(
            total=len(items), desc=self.name, delay=SECONDS_BEFORE_PROGRESS, leave=False
        ) as bar:
            for adapter, indices in by_adapter.items():
                for start in range(0, len(indices), _ITEMS_AT_ONCE):
                    chunk = indices[start : start + _ITEMS_AT_ONCE]
                    vectors = [items[i].activations.vectors.flatten(0, 1) for i in chunk]
                    rows = lens_log_probs(self.model, vectors, adapter=adapter)
                    for i, row in zip(chunk, rows, strict=True):
                        answers[i] = answer_from_vocabulary(
                            row,
                            items[i],
                            arm=self.name,
                            tokenizer=self.model.tokenizer,
                            top_k=self.top_k,
                        )
                    bar.update(len(chunk))
        return [answers[i] for i in range(len(items))]


class TokenSimilarity:
    """Cosine of what was read with each token's unembedding, averaged over positions and layers.

    No norm and no head: a second look that does not presume that a middle layer speaks the last
    one's language.
    """

    kind: Kind = "baseline"

    def __init__(
        self, model: TracedModel, *, name: str = "token similarity", top_k: int = 1
    ) -> None:
        """A token similarity; arguments as of `LogitLens`."""
        self.model = model
        self.name = name
        self.top_k = top_k

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        tokens = torch.nn.functional.normalize(unembeddings(self.model), dim=-1)
        answers = []
        for item in tqdm(items, desc=self.name, delay=SECONDS_BEFORE_PROGRESS, leave=False):
            vectors = item.activations.vectors.flatten(0, 1).float().cpu()
            # The mean of cosines is the cosine with the mean direction, but for its length.
            direction = torch.nn.functional.normalize(vectors, dim=-1).mean(0)
            answers.append(
                answer_from_vocabulary(
                    tokens @ direction,
                    item,
                    arm=self.name,
                    tokenizer=self.model.tokenizer,
                    top_k=self.top_k,
                )
            )
        return answers


class MeanDifferenceLens:
    """What the target's adapter adds on neutral prompts, read through the base's unembedding.

    It does not look at an item's own activations, only at its adapter and layers.
    """

    kind: Kind = "baseline"

    def __init__(
        self,
        model: TracedModel,
        prompts: Sequence[Prompt],
        *,
        positions: slice | tuple[int, ...] | None = slice(0, 10),
        name: str = "mean-difference lens",
        top_k: int = 1,
    ) -> None:
        """A mean-difference lens.

        Args:
            model: The target, with its adapters.
            prompts: Neutral prompts.
            positions: Positions of them that the mean is over; by default the first ten.
            name: As it stands in tables.
            top_k: How many tokens make a free answer.

        Raises:
            EvalError: There is no prompt.
        """
        if not prompts:
            raise EvalError("The mean-difference lens needs at least one neutral prompt.")
        self.model = model
        self.prompts = tuple(prompts)
        self.positions = positions
        self.name = name
        self.top_k = top_k
        self._known: dict[tuple[str, tuple[int, ...]], Float[Tensor, "l d"]] = {}

    def difference(self, adapter: str, layers: tuple[int, ...]) -> Float[Tensor, "l d"]:
        """Mean of adapter minus base over all prompts and positions, float32.

        Each position of each prompt counts once. It is kept for the adapter's weights as they are.
        """
        key = (self.model.adapter_digest(adapter), layers)
        if key not in self._known:
            options = {"layers": layers, "positions": self.positions}
            ours = self.model.activations(list(self.prompts), adapter=adapter, **options)
            base = self.model.activations(list(self.prompts), **options)
            gaps = [(a - b).vectors for a, b in zip(ours, base, strict=True)]
            self._known[key] = torch.cat(gaps, dim=1).mean(1)
        return self._known[key]

    def answer(self, items: Sequence[EvalItem]) -> list[ArmAnswer]:
        """See `Arm`."""
        answers = []
        for item in tqdm(items, desc=self.name, delay=SECONDS_BEFORE_PROGRESS, leave=False):
            if item.adapter is None:
                raise ArmNotApplicableError(
                    f"Item {item.id!r} is of the base itself, from which it does not differ. Leave "
                    f"{self.name!r} out for this task."
                )
            vectors = self.difference(item.adapter, item.layers)
            answers.append(
                answer_from_vocabulary(
                    lens_log_probs(self.model, [vectors])[0],
                    item,
                    arm=self.name,
                    tokenizer=self.model.tokenizer,
                    top_k=self.top_k,
                )
            )
        return answers
