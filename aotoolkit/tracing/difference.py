"""How far two reads of the same tokens are apart, by layer and token.

A norm alone says little: the residual stream grows with depth, so that the same change weighs less
upstairs. So the difference stands beside its share of the other read's norm, and beside the angle.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from aotoolkit.tracing.activations import Activations

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationDifference:
    """Where two reads of the same tokens differ.

    Attributes:
        layers: The l blocks.
        positions: The s positions in the prompt.
        tokens: The tokens there.
        norm: [l s], length of the difference.
        relative_norm: [l s], `norm` as a share of the length of what was subtracted.
        cosine: [l s], cosine of the angle between the two; 1 where both point the same way.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    norm: Float[Tensor, "l s"]
    relative_norm: Float[Tensor, "l s"]
    cosine: Float[Tensor, "l s"]

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each layer and token."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "layer": layer,
                    "position": position,
                    "token": token,
                    "norm": float(self.norm[row, col]),
                    "relative_norm": float(self.relative_norm[row, col]),
                    "cosine": float(self.cosine[row, col]),
                }
                for row, layer in enumerate(self.layers)
                for col, (position, token) in enumerate(
                    zip(self.positions, self.tokens, strict=True)
                )
            ]
        )


def activation_difference(acts: Activations, other: Activations) -> ActivationDifference:
    """Norm of `acts - other`, its share of `other`'s norm, and their cosine, by layer and token.

    Args:
        acts: Such as those of a fine-tuned model.
        other: The same tokens, positions and layers, such as those of its base.

    Raises:
        IncompatibleActivationsError: Other tokens, positions, layers or base model.
    """
    # The subtraction checks that both are of the same tokens.
    norm = (acts - other).vectors.norm(dim=-1).cpu()
    ours, theirs = acts.vectors.float().cpu(), other.vectors.float().cpu()
    smallest = torch.finfo(torch.float32).tiny  # a vector of zeros has no direction
    return ActivationDifference(
        layers=acts.layers,
        positions=acts.positions,
        tokens=acts.tokens,
        norm=norm,
        relative_norm=norm / theirs.norm(dim=-1).clamp(min=smallest),
        cosine=torch.cosine_similarity(ours, theirs, dim=-1),
    )
