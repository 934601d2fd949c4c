"""Writing vectors into the residual stream: one implementation for training and for asking."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aotoolkit.errors import InjectionError
from aotoolkit.oracle.contract import Formula


@dataclass(frozen=True, kw_only=True, eq=False)
class Injection:
    """Vectors and the places in a batch where they are injected.

    `add_norm_matched` with coefficient 1 is that of Activation Oracles (arXiv:2512.15674),
    `replace` that of LatentQA (arXiv:2412.08686). The stream's norms are detached, as in the
    published code, so that training cannot shrink the stream that a vector is matched to; gradients
    reach `vectors` where they ask for them.

    Attributes:
        vectors: [n d].
        rows: [n], indices into the batch.
        cols: [n], indices into the padded sequence.
        formula: See `OracleContract`.
        coefficient: c.
        final_scale: s.

    Raises:
        InjectionError: Shapes do not match, a vector is not finite, or two vectors go to one place.
    """

    vectors: Float[Tensor, "n d"]
    rows: Int[Tensor, " n"]
    cols: Int[Tensor, " n"]
    formula: Formula
    coefficient: float = 1.0
    final_scale: float = 1.0

    def __post_init__(self) -> None:
        n = self.rows.shape[0]
        if self.vectors.ndim != 2 or self.rows.shape != (n,) or self.cols.shape != (n,):
            raise InjectionError(
                f"vectors, rows and cols have shapes {tuple(self.vectors.shape)}, "
                f"{tuple(self.rows.shape)} and {tuple(self.cols.shape)}; expected [n d], [n], [n]."
            )
        if self.vectors.shape[0] != n:
            raise InjectionError(f"{self.vectors.shape[0]} vectors for {n} places.")
        if n and (int(self.rows.min()) < 0 or int(self.cols.min()) < 0):
            raise InjectionError(
                "rows and cols must be 0 or more; padding shifts cols to the right."
            )
        if torch.stack([self.rows, self.cols]).unique(dim=1).shape[1] != n:
            raise InjectionError("Two vectors go to the same row and column; each needs its own.")
        if not bool(torch.isfinite(self.vectors.detach()).all()):
            raise InjectionError("A vector to be injected holds NaN or Inf; read it again.")

    def __call__(self, hidden: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """The residual stream with the vectors in it; `hidden` itself is left as it was."""
        b, s, d = hidden.shape
        if self.rows.shape[0] == 0:
            return hidden
        if d != self.vectors.shape[1]:
            raise InjectionError(
                f"The vectors have width {self.vectors.shape[1]}, the model has {d}; an oracle "
                "reads activations of its own base only."
            )
        if int(self.rows.max()) >= b or int(self.cols.max()) >= s:
            raise InjectionError(
                f"Row {int(self.rows.max())}, column {int(self.cols.max())} lies outside a batch "
                f"of {b} rows and {s} columns."
            )
        rows, cols = self.rows.to(hidden.device), self.cols.to(hidden.device)
        vectors = self.vectors.to(hidden.device)
        if self.formula == "replace":
            return hidden.index_put((rows, cols), vectors.to(hidden.dtype))
        before = hidden[rows, cols]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        norms = before.detach().to(wide).norm(dim=-1, keepdim=True)
        direction = nn.functional.normalize(vectors.to(wide), dim=-1)
        added = (self.coefficient * norms * direction).to(hidden.dtype)
        after = before + added
        if self.formula == "add_rescaled":
            # The sum's length depends on the vector too, which steering moves.
            length = (before.detach() + added).to(wide).norm(dim=-1, keepdim=True)
            after = after * (self.final_scale * norms / length.clamp_min(1e-12)).to(hidden.dtype)
        return hidden.index_put((rows, cols), after)


@contextmanager
def injecting(
    block: nn.Module, injection: Injection, *, prefill_only: bool = True
) -> Iterator[None]:
    """Injects after a block while the context is open.

    With gradient checkpointing the block runs again in the backward pass, so `backward` belongs
    inside the context.

    Args:
        block: The decoder block whose output is changed.
        injection: What is injected.
        prefill_only: Once the prompt has passed, leaves shorter passes alone, which are the steps
            of a generation with a cache. Without a cache each step runs the whole sequence again,
            and is injected into again.

    Raises:
        InjectionError: The block never ran, so nothing was injected.
    """
    prompt_length: int | None = None

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal prompt_length
        hidden = output[0] if isinstance(output, tuple) else output
        length = hidden.shape[1]
        if prompt_length is None:
            prompt_length = length
        elif prefill_only and length < max(2, prompt_length):
            return output
        injected = injection(hidden)
        return (injected, *output[1:]) if isinstance(output, tuple) else injected

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if prompt_length is None:
        raise InjectionError(
            f"The block {type(block).__name__} did not run, so nothing was injected. Inject after "
            "a block of the model that is run."
        )
