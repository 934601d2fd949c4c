"""The contract of a new oracle: the published Activation Oracle's prompt and injection."""

from collections.abc import Sequence

import aotoolkit
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.activations import Layer

# Of the depth (arXiv:2512.15674, section 3).
READ_FRACTIONS = (0.25, 0.5, 0.75)


def default_contract(
    model: TracedModel,
    *,
    read_layers: Sequence[Layer] = READ_FRACTIONS,
    several_layers: bool = False,
    inject_layer: int = 1,
    placeholder: str = " ?",
    transform: VectorTransform | None = None,
) -> OracleContract:
    r"""The contract of an Activation Oracle (arXiv:2512.15674) for this model's base.

    One user turn `"Layer: {l}\n" + " ?" * p + " \n" + question`, thinking off where the chat
    template can; vectors added after block 1, matched to the norm of what stands there.

    Args:
        model: the base.
        read_layers: block indices or fractions of depth that the oracle is trained on.
        several_layers: whether a prompt may hold vectors of several layers.
        inject_layer: block after which vectors are injected.
        placeholder: text of one placeholder, a single token.
        transform: what is done to the vectors first; none by default.

    Raises:
        LayerError: the model does not have such a layer.
        PlaceholderError: the placeholder is not one token.
        ChatTemplateError: the tokenizer has no chat template.
    """
    layers = tuple(model.resolve_layer(layer) for layer in read_layers)
    transform = transform or VectorTransform()
    thinks = "enable_thinking" in str(model.tokenizer.chat_template or "")
    contract = OracleContract(
        base_model=model.name,
        base_revision=model.revision,
        base_digest=model.base_digest,
        dialect="activation_oracle",
        prefix_template="Layer: {layer}\n{placeholders} \n",
        placeholder=placeholder,
        chat_template_kwargs={"enable_thinking": False} if thinks else {},
        read_layers=layers,
        read_fractions=tuple(layer / model.num_layers for layer in layers),
        layers_per_prompt="several" if several_layers else "one",
        inject_layer=model.resolve_layer(inject_layer),
        formula="add_norm_matched",
        coefficient=1.0,
        transform=transform.kind,
        transform_digest=None if transform.kind == "none" else transform.digest,
        position_ids="from_mask",
        aotoolkit_version=aotoolkit.__version__,
    )
    return describe_tokenizer(contract, model.tokenizer)
