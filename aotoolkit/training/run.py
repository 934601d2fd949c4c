"""What a run works with: its examples, its contract, the model with a trainable adapter."""

import contextlib
import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import prepare_model_for_kbit_training
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import set_seed

from aotoolkit.data.example import Example
from aotoolkit.errors import ContractError, LayerError, TrainingSettingsError
from aotoolkit.oracle import OracleContract
from aotoolkit.oracle.injection import injecting
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.digest import tokenizer_digest
from aotoolkit.tracing.lora_targets import check_adapted, lora_targets
from aotoolkit.training.collator import ActivationCollator, OracleBatch
from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.default_contract import default_contract
from aotoolkit.training.lora import lora_config
from aotoolkit.training.loss import answer_logits, oracle_loss
from aotoolkit.training.stream import BatchStream

if TYPE_CHECKING:
    from aotoolkit.data.mixture import BuiltMixture
    from aotoolkit.training.activation_cache import ActivationCache

ORACLE_ADAPTER = "oracle"
# Batches whose activations are read at once.
WINDOW = 16


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run is trained and scored on.

    Attributes:
        train: in training order.
        validation: held out; empty for none.
        manifest: one mapping for each source, for the contract.
        layers: all that the training examples read.
        several_layers: whether one of them reads several.
        train_digest: SHA-256 over all training examples, in their order.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    manifest: tuple[Mapping[str, Any], ...]
    layers: tuple[int, ...]
    several_layers: bool
    train_digest: str

    @classmethod
    def of(
        cls,
        mixture: "BuiltMixture | Sequence[Example]",
        validation: Sequence[Example] | None = None,
        *,
        progress: bool = False,
    ) -> "TrainingData":
        """Looks through the examples once: layers, how many of each source, their digest."""
        if isinstance(mixture, Sequence):
            train, held_out, manifest = mixture, (), ()
        else:
            train, held_out, manifest = mixture.train, mixture.validation, mixture.manifest
        counts: Counter[str] = Counter()
        chosen: set[tuple[int, ...]] = set()
        sha = hashlib.sha256()
        for example in tqdm(train, "examples", delay=2.0, leave=False, disable=not progress):
            counts[example.source] += 1
            chosen.add(example.layers)
            _update(sha, example)
        if not counts:
            raise TrainingSettingsError("There are no examples to train on; give at least one.")
        counted = tuple({"name": name, "examples": counts[name]} for name in sorted(counts))
        return cls(
            train=train,
            validation=held_out if validation is None else validation,
            manifest=manifest or counted,
            layers=tuple(sorted({layer for layers in chosen for layer in layers})),
            several_layers=any(len(layers) > 1 for layers in chosen),
            train_digest=sha.hexdigest(),
        )

    @property
    def validation_digest(self) -> str:
        """SHA-256 over all held-out examples, in their order."""
        sha = hashlib.sha256()
        for example in self.validation:
            _update(sha, example)
        return sha.hexdigest()


def _update(sha: Any, example: Example) -> None:
    """Adds what a loss or a figure depends on."""
    sha.update(array("q", example.context_ids))
    told = (
        len(example.context_ids),
        example.positions,
        example.layers,
        example.question,
        example.answer,
        example.source,
        example.evidence,
        example.choices,
    )
    sha.update(repr(told).encode(errors="surrogatepass"))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: what it trains, on what, how.

    Attributes:
        model: the base; with the adapter on it inside `prepared_model`.
        data: the examples.
        config: the settings.
        contract: how prompts are written and vectors injected.
        transform: what is done to the vectors first.
        cache: vectors read beforehand; None reads them as training goes.
    """

    model: TracedModel
    data: TrainingData
    config: TrainingConfig
    contract: OracleContract
    transform: VectorTransform
    cache: "ActivationCache | None"

    @classmethod
    def of(
        cls,
        model: TracedModel,
        mixture: "BuiltMixture | Sequence[Example]",
        config: TrainingConfig,
        *,
        contract: OracleContract | None,
        transform: VectorTransform | None,
        validation: Sequence[Example] | None,
        cache: "ActivationCache | None",
    ) -> "Run":
        """Checks that the parts belong together; see `train_oracle` for them and the errors."""
        if model.adapter_names:
            raise TrainingSettingsError(
                f"The model has the adapters {model.adapter_names}; an oracle is trained on a base "
                "without any. Load the base anew."
            )
        data = TrainingData.of(mixture, validation, progress=config.progress)
        transform = transform or VectorTransform()
        contract = resolve_contract(model, data, contract, transform)
        if cache is not None:
            looked_up = itertools.chain(data.train, data.validation)
            cache.check_examples(
                tqdm(looked_up, "cached", delay=2.0, leave=False, disable=not config.progress)
            )
        return cls(
            model=model,
            data=data,
            config=config,
            contract=contract,
            transform=transform,
            cache=cache,
        )

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.config.output_dir

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.steps(len(self.data.train))

    @property
    def block(self) -> nn.Module:
        """The block after which vectors are injected."""
        return self.model.blocks[self.contract.inject_layer]

    @property
    def head(self) -> nn.Module:
        """The output embeddings."""
        head = self.model.hf_model.get_output_embeddings()
        assert head is not None, "a causal LM has a head"
        return head

    @cached_property
    def collator(self) -> ActivationCollator:
        """Makes the batches."""
        return ActivationCollator(self.model, self.contract, self.transform, cache=self.cache)

    def stream(
        self, *, start: int = 0, rank: int = 0, world_size: int = 1, window: int = WINDOW
    ) -> BatchStream:
        """This process's batches, from step `start` on."""
        plain = ActivationCollator(self.model, self.contract, VectorTransform(), cache=self.cache)
        return BatchStream(
            self.collator,
            self.data.train,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start=start,
            window=window,
            rank=rank,
            world_size=world_size,
            accumulation_steps=self.config.gradient_accumulation_steps,
            warm_up_collator=plain,
            warm_up_steps=self.config.untransformed_steps,
        )

    def loss(self, model: nn.Module, batch: OracleBatch) -> Tensor:
        """The batch's part of the global batch's loss. `injecting` must be open around it."""
        logits, labels = answer_logits(model, batch, block=self.block, head=self.head, inject=False)
        return oracle_loss(logits, labels, batch.num_label_tokens)

    def probe(self, model: nn.Module, batch: OracleBatch) -> None:
        """Forward and backward, for the time and memory they take; no gradient is kept."""
        trained = [p for p in model.parameters() if p.requires_grad]
        with injecting(self.block, batch.injection):
            loss = self.loss(model, batch)
            torch.autograd.grad(loss, trained, allow_unused=True)


class FrozenWeights:
    """Notices when weights that are not trained change.

    A digest of all would take longer than a training step. A tensor that was written to is known by
    torch's version counter, and is then compared by its sum: PEFT's adapters of fused experts write
    to them, and write back what was there.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = [p for p in model.parameters() if not p.requires_grad]
        self._seen = [self._state(weight) for weight in self._weights]
        self._sums = [self._sum(weight) for weight in self._weights]

    def changed(self) -> bool:
        """Whether one of them is another than at the beginning."""
        for index, weight in enumerate(self._weights):
            state = self._state(weight)
            if state != self._seen[index]:
                if self._sum(weight) != self._sums[index]:
                    return True
                self._seen[index] = state
        return False

    @staticmethod
    def _state(weight: Tensor) -> tuple[int, int]:
        return weight.data_ptr(), weight._version

    @staticmethod
    def _sum(weight: Tensor) -> float:
        precise = torch.float32 if weight.device.type == "mps" else torch.float64
        return float(weight.detach().sum(dtype=precise))


def resolve_contract(
    model: TracedModel,
    data: TrainingData,
    contract: OracleContract | None,
    transform: VectorTransform,
) -> OracleContract:
    """The contract of a run, with the base's digest and the data's manifest in it.

    Raises:
        ContractError, LayerError: see `train_oracle`.
    """
    if contract is None:
        contract = default_contract(
            model,
            read_layers=data.layers,
            several_layers=data.several_layers,
            transform=transform,
        )
    if contract.transform != transform.kind:
        raise ContractError(
            f"The contract says transform={contract.transform!r}, the transform given is "
            f"{transform.kind!r}. Pass the two that belong together."
        )
    if contract.base_digest is not None and not model.has_base_digest(contract.base_digest):
        raise ContractError(
            f"The contract is for a base with the digest {contract.base_digest}, the model's is "
            f"{model.base_digest}. Load the base that the contract names "
            f"({contract.base_model!r}), or leave base_digest out."
        )
    tokenizer = tokenizer_digest(model.tokenizer)
    if contract.tokenizer_digest not in (None, tokenizer):
        raise ContractError(
            f"The contract is for a tokenizer with the digest {contract.tokenizer_digest}, the "
            f"model's is {tokenizer}: its tokens or its chat template are others. Give the model "
            "that tokenizer, or leave tokenizer_digest out."
        )
    if contract.collection_adapter is not None:
        raise ContractError(
            f"The contract says that activations are read with the adapter "
            f"{contract.collection_adapter!r}; training reads them from the base alone. Set "
            "collection_adapter to None."
        )
    if unknown := sorted(set(data.layers) - set(contract.read_layers)):
        raise LayerError(
            f"Examples read the layers {unknown}, which are not among the contract's read_layers "
            f"{list(contract.read_layers)}. Add them to the contract, or leave the examples out."
        )
    return replace(
        contract,
        base_digest=model.base_digest,
        transform_digest=None if transform.kind == "none" else transform.digest,
        training_data=data.manifest,
        # Of another oracle, where the contract is one's.
        extra={name: value for name, value in contract.extra.items() if name != "validation"},
    )


@contextlib.contextmanager
def prepared_model(
    model: TracedModel, config: TrainingConfig, *, keep: bool = True
) -> Iterator[None]:
    """Inside, the model has a live, trainable adapter on a frozen base.

    Afterwards it is as it was, but for the adapter, which stays, frozen, where `keep` says so and
    nothing failed. A base in 8 or 4 bits stays prepared as PEFT does it: norms in float32.
    """
    hf_model: Any = model.hf_model
    flags = [(p, p.requires_grad) for p in hf_model.parameters()]
    use_cache = getattr(hf_model.config, "use_cache", None)
    if getattr(hf_model, "is_quantized", False):
        prepare_model_for_kbit_training(hf_model, use_gradient_checkpointing=False)
    kept = False
    try:
        hf_model.requires_grad_(False)
        set_seed(config.seed)
        targets = lora_targets(
            model, experts=config.lora_experts, routers=config.lora_routers, head=config.lora_head
        )
        model.add_adapter(ORACLE_ADAPTER, lora_config(model, config))
        check_adapted(model, ORACLE_ADAPTER, targets)
        if config.gradient_checkpointing:
            _checkpoint_gradients(hf_model, on=True)
        with model.using(ORACLE_ADAPTER):
            yield
        kept = keep
    finally:
        if not kept and ORACLE_ADAPTER in model.adapter_names:
            model.delete_adapter(ORACLE_ADAPTER)
        hf_model.zero_grad()
        hf_model.requires_grad_(False)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        if config.gradient_checkpointing:
            _checkpoint_gradients(hf_model, on=False)
        if use_cache is not None:
            hf_model.config.use_cache = use_cache
        if model.peft_model is not None:
            # A second run would go on with the precision of the first.
            extract_model_from_parallel(model.peft_model, keep_fp32_wrapper=False)
            model.peft_model.__dict__.pop("_is_accelerate_prepared", None)
            model.peft_model.eval()
        hf_model.eval()


def _checkpoint_gradients(hf_model: Any, *, on: bool) -> None:
    # transformers 5.2x renamed it; the old name warns.
    kind = "activation" if hasattr(hf_model, "activation_checkpointing_enable") else "gradient"
    if on:
        options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(hf_model, f"{kind}_checkpointing_enable")(**options)
    else:
        getattr(hf_model, f"{kind}_checkpointing_disable")()
