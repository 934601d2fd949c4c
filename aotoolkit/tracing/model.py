"""TracedModel: a causal LM whose activations can be read, with the adapter stated each time."""

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import aotoolkit
from aotoolkit.errors import (
    AdapterStateError,
    BlockDiscoveryError,
    ContextLengthError,
    HookNotFiredError,
    ModelNotFoundError,
    NonFiniteError,
    PromptError,
    UnsupportedModelError,
)
from aotoolkit.tracing import adapters as adapters_module
from aotoolkit.tracing import blocks as blocks_module
from aotoolkit.tracing import remote as remote_module
from aotoolkit.tracing.activations import (
    Activations,
    Layer,
    Provenance,
    refuse_compatibility_mode,
    resolve_layers,
    resolve_positions,
)
from aotoolkit.tracing.adapters import AdapterSwitch
from aotoolkit.tracing.digest import DigestCache, listing, sha256_of_listing
from aotoolkit.tracing.encoding import Encoded, Prompt, chat_template_digest, encode, is_batch
from aotoolkit.tracing.trace import LazyNNsight, forget, run_trace, stop_early

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_DEFAULT_BATCH_SIZE = 16
# What contracts and adapters call the base that ships with the package.
_PACKAGED = {"aotoolkit/nano": Path(aotoolkit.__file__).parent / "nano" / "weights" / "base"}

_VOLATILE_CONFIG = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_commit_hash",
    "architectures",
)
# What says nothing of how activations are computed from weights, and is set by hand.
_NOT_ARCHITECTURE = ("id2label", "label2id", "problem_type", "quantization_config")


class TracedModel:
    """A decoder-only language model, its adapters, and reads of its residual stream.

    Wrapping finds the decoder blocks by structure and checks every block's read against the
    model's own hidden states with one tiny forward. The weights stay the caller's; adapters are
    injected into them in place.

    Attributes:
        hf_model: the module whose forward is run. It sees the adapter that is live.
        tokenizer: the caller's tokenizer, never changed.
        config: the config of the (text) decoder.
        blocks: its decoder blocks; layer l is the residual stream after `blocks[l]`.
        lock: a reentrant lock that is held while the model runs. Hold it around any forward of
            your own: two threads must not run one model at once.
        name: path or Hub id.
        revision: revision on the Hub, where known.
        chat_template_kwargs: what the chat template is given wherever a call does not say it.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel | TransformerBridge",
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        revision: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: a causal LM of transformers, a `PeftModel` around one, or a TransformerLens
                `TransformerBridge` (not in compatibility mode; it takes no adapters).
            tokenizer: the model's tokenizer.
            name: path or Hub id for provenance; default: what the config says.
            revision: revision for provenance; default: what the config says.
            chat_template_kwargs: for the chat template, such as `{"enable_thinking": False}`.

        Raises:
            UnsupportedModelError: not such a model, or one with adapters that cannot be switched.
            BlockDiscoveryError: the blocks cannot be found, or reading them gives something else.
        """
        self.lock = threading.RLock()
        is_bridge = hasattr(model, "original_model") and hasattr(model, "compatibility_mode")
        self._bridge: Any = model if is_bridge else None
        refuse_compatibility_mode(model)
        self._adapters = AdapterSwitch(model) if isinstance(model, PeftModel) else None
        if isinstance(model, PeftModel):
            hf_model = model.get_base_model()
        else:
            hf_model = getattr(model, "original_model", model)
        if not isinstance(hf_model, PreTrainedModel):
            raise UnsupportedModelError(
                f"Cannot trace a {type(model).__name__}. Give a causal LM of transformers, a "
                "PeftModel around one, or a TransformerLens TransformerBridge."
            )
        if self._adapters is None:
            _refuse_unmanaged_adapters(hf_model)
        if hf_model.config.is_encoder_decoder:
            raise UnsupportedModelError(
                f"{type(hf_model).__name__} is an encoder-decoder. Tracing needs a decoder-only "
                "model."
            )
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.config: PretrainedConfig = hf_model.config.get_text_config(decoder=True)
        self.name = name or hf_model.config.name_or_path or type(hf_model).__name__
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.revision = revision or getattr(hf_model.config, "_commit_hash", None)
        self._takes_position_ids = "position_ids" in inspect.signature(hf_model.forward).parameters
        self._plain_modules = list(hf_model.modules())
        self._base_weights = _base_weights(hf_model, self.adapter_names)
        self._base_digest = DigestCache(sums=False)
        self._adapter_paths: dict[str, str] = {}
        self._hub_id: str | None = None
        self._envoy = LazyNNsight(hf_model)
        self._block_envoys: dict[int, Any] = {}
        self.blocks_path, self.blocks = self._find_blocks()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        quantization_config: Any = None,
        adapters: Mapping[str, str | Path] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load a causal LM and its tokenizer from a folder or the Hugging Face Hub.

        Args:
            path_or_id: a folder, or a Hub id; "aotoolkit/nano" is the base that ships with the
                package.
            revision: of the Hub repository.
            dtype: as in transformers; "auto" is the dtype of the checkpoint.
            device: default: an accelerator where there is one, else the CPU.
            quantization_config: as in transformers.
            adapters: name -> folder or Hub id of PEFT adapters to load.
            chat_template_kwargs: for the chat template wherever a call does not say it, such as
                `{"enable_thinking": False}` for a model that thinks before it replies.

        Raises:
            ModelNotFoundError: a path that looks local does not exist, or what is there, here or on
                the Hub, is no causal LM with safetensors weights.
            AdapterLoadError: see `load_adapter`.
        """
        name = str(path_or_id)
        source = packaged_path(name)
        local = Path(source).expanduser().is_dir()
        looks_local = isinstance(path_or_id, Path) or source.startswith((".", "/", "~"))
        if not local and (looks_local or source.count("/") > 1):
            raise ModelNotFoundError(
                f"There is no model folder {source!r}. Give a folder with config.json and "
                "safetensors weights, or a Hub id 'owner/name'."
            )
        if local:
            source = str(Path(source).expanduser())
            name = name if path_or_id in _PACKAGED else source
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        options: dict[str, Any] = {
            "dtype": dtype,
            "revision": revision,
            "use_safetensors": True,
            "quantization_config": quantization_config,
            # Straight to the device, without a copy in the host's memory.
            "device_map": {"": device},
        }
        try:
            hf_model = AutoModelForCausalLM.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError) as error:
            where = "the folder" if local else "the Hugging Face Hub, or its copy here,"
            raise ModelNotFoundError(
                f"No model {source!r} could be loaded from {where}: {error} Give a folder with "
                "config.json, safetensors weights and tokenizer, or a Hub id 'owner/name'."
            ) from error
        if quantization_config is None:
            # All on one device, it may still be moved, which transformers refuses by this mark.
            hf_model.__dict__.pop("hf_device_map", None)
        hf_model.eval()
        model = cls(
            hf_model,
            tokenizer,
            name=name,
            revision=revision,
            chat_template_kwargs=chat_template_kwargs,
        )
        model._hub_id = None if local else source
        for name, path in (adapters or {}).items():
            model.load_adapter(name, path)
        return model

    def __repr__(self) -> str:
        adapters = ", ".join(self.adapter_names) or "none"
        return (
            f"TracedModel({self.name}: {self.num_layers} blocks of width {self.d_model}, "
            f"{self.dtype}, {self.device}; adapters: {adapters})"
        )

    # What the model is

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.hf_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base weights."""
        return self.hf_model.dtype

    @property
    def context_length(self) -> int | None:
        """How many tokens the model was built for; None where the config does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def base_digest(self) -> str:
        """SHA-256 over the architecture and the base weights, without adapters.

        The same for float16 or bfloat16 weights and their widened copy; another where the base was
        rounded to a narrower dtype or quantised.
        """
        return self._base_digests()[0]

    def has_base_digest(self, digest: str) -> bool:
        """Whether a recorded digest is of this base.

        Those that were recorded when the digest was still over the whole config are known too.
        """
        return digest in self._base_digests()

    def _base_digests(self) -> tuple[str, str]:
        """The digest, and the one that was recorded before."""
        whole, architecture = (self.hf_model.config.to_dict() for _ in range(2))
        for nested in _with_nested(whole):
            for key in _VOLATILE_CONFIG:
                nested.pop(key, None)
        for nested in _with_nested(architecture):
            for key in [*nested]:
                named = key in (*_VOLATILE_CONFIG, *_NOT_ARCHITECTURE)
                if named or str(key).endswith("_token_id"):
                    del nested[key]
        with self.lock:
            weights = self._base_digest.get(self._base_weights, lambda: listing(self._base_weights))
        return sha256_of_listing(weights, architecture), sha256_of_listing(weights, whole)

    def resolve_layer(self, layer: Layer) -> int:
        """Block index (negative: from the end) or fraction of depth -> block index.

        A fraction f is block `int(f * num_layers)`.

        Raises:
            LayerError: outside the model.
        """
        return resolve_layers(layer, self.num_layers)[0]

    # Adapters

    @property
    def peft_model(self) -> PeftModel | None:
        """The PeftModel around `hf_model`, once there is an adapter."""
        return self._adapters.peft_model if self._adapters else None

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return self._adapters.names if self._adapters else ()

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load a PEFT adapter, frozen, from a folder or a Hub id.

        Raises:
            AdapterLoadError: nothing to load there, the name is taken, or the weights do not
                attach to this base exactly.
        """
        self._refuse_adapters_on_bridge()
        with self.lock:
            self._adapters = adapters_module.load_adapter(self.hf_model, self._adapters, name, path)
            self._adapter_paths[name] = str(path)

    def add_adapter(self, name: str, config: PeftConfig) -> None:
        """Add a new, untrained adapter, whose weights require gradients.

        It takes part in a forward inside `using(name)`.

        Raises:
            AdapterLoadError: the name is taken or the config does not fit the model.
        """
        self._refuse_adapters_on_bridge()
        with self.lock:
            self._adapters = adapters_module.add_adapter(
                self.hf_model, self._adapters, name, config
            )

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            UnknownAdapterError: there is none of this name.
        """
        if self._adapters is None:
            raise adapters_module.unknown_adapter(name, ())
        with self.lock:
            self._adapters.delete(name)
            self._adapter_paths.pop(name, None)

    def adapter_source(self, name: str) -> str | None:
        """The folder or Hub id that an adapter was loaded from; None for one made in memory."""
        return self._adapter_paths.get(name)

    def adapter_digest(self, name: str) -> str:
        """SHA-256 over an adapter's weights and scalings, as they are now.

        Raises:
            UnknownAdapterError: there is none of this name.
        """
        if self._adapters is None:
            raise adapters_module.unknown_adapter(name, ())
        with self.lock:
            return self._adapters.digest(name)

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Inside, exactly this adapter takes part in every forward (None: the base alone).

        Takes the lock. On leaving, also by an error, the adapters that were live before are live
        again; `requires_grad` flags are never touched. Can be nested.

        Raises:
            UnknownAdapterError: there is none of this name.
            AdapterStateError: the adapter cannot be made live, such as when one is merged.
        """
        with self.lock:
            refuse_compatibility_mode(self._bridge)  # it can be enabled after wrapping
            if self._adapters is not None:
                with self._adapters.using(adapter):
                    yield
            elif adapter is not None:
                raise adapters_module.unknown_adapter(adapter, ())
            else:
                _refuse_unmanaged_adapters(self.hf_model)
                yield

    def _refuse_adapters_on_bridge(self) -> None:
        if self._bridge is not None:
            raise UnsupportedModelError(
                "PEFT cannot add adapters to a TransformerBridge, which has replaced the model's "
                "linear layers. Load the model with TracedModel.from_pretrained instead."
            )

    @contextlib.contextmanager
    def inference(self, adapter: str | None) -> Iterator[None]:
        """`using`, in evaluation mode and without gradients; all as before afterwards."""
        with self.using(adapter), torch.no_grad():
            modules = self._adapters.modules if self._adapters else self._plain_modules
            training = [module for module in modules if module.training]
            for module in training:
                module.training = False
            try:
                yield
            finally:
                for module in training:
                    module.training = True

    # Reading

    def encode(
        self,
        prompt: Prompt,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """Tokenise a string, a list of chat messages, or take token ids as they are.

        A string gets the tokenizer's special tokens; a chat is rendered by the chat template.

        Args:
            prompt: what is tokenised.
            add_generation_prompt: for a chat, whether the header of a reply follows it.
            chat_template_kwargs: for a chat; default: the model's.

        Raises:
            PromptError: empty, unknown token ids, or messages that the template refuses.
            ChatTemplateError: a chat, and the tokenizer has no template.
        """
        embedding = self.hf_model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        return encode(
            self.tokenizer,
            prompt,
            add_generation_prompt=add_generation_prompt,
            chat_template_kwargs=self._template_kwargs(chat_template_kwargs),
            vocabulary_size=embedding.shape[0],
        )

    def residuals(
        self,
        input_ids: Int[Tensor, "b s"],
        attention_mask: Int[Tensor, "b s"],
        *,
        layers: Sequence[int],
        adapter: str | None = None,
    ) -> Float[Tensor, "l b s d"]:
        """Residual stream after the blocks `layers`, for a padded batch of token ids.

        The lean read under everything else: one forward that stops after the last block asked
        for, without gradients, in evaluation mode, with position ids from the mask, so that
        padding on either side changes nothing. What stands at padding is undefined.

        Raises:
            LayerError: no layer, or one outside the model.
            ContextLengthError: a row is longer than the model's context.
            HookNotFiredError: a block did not run.
            NonFiniteError: NaN or infinity at a token.
        """
        assert input_ids.shape == attention_mask.shape, (input_ids.shape, attention_mask.shape)
        layers = resolve_layers(layers, self.num_layers)
        if self.context_length is not None and input_ids.shape[1] > self.context_length:
            self._check_length(int(attention_mask.sum(-1).max()))
        inputs = self._inputs(input_ids, attention_mask)
        places = {layer: place for place, layer in enumerate(layers)}
        stacked: list[Tensor] = []
        stopped: list[BaseException] = []

        def read(tracer: Any) -> None:
            for layer in sorted(places):  # nnsight serves outputs in the order of the forward
                hidden = _residual(self._block_envoy(layer).output)
                if not stacked:
                    stacked.append(hidden.new_empty((len(places), *hidden.shape)))
                stacked[0][places[layer]] = hidden
            stop_early(tracer, stopped)

        with self.inference(adapter):
            run_trace(self._envoy, read, **inputs)
        forget(stopped)
        result = stacked.pop()
        # One sum finds any NaN or infinity, five times as fast as looking at each number.
        if not math.isfinite(result.sum(dtype=torch.float32).item()):
            _refuse_non_finite(result, inputs["attention_mask"], layers)
        return result

    def activations(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        layers: Layer | Sequence[Layer],
        adapter: str | None = None,
        positions: Sequence[int] | slice | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        remote: bool = False,
    ) -> Any:
        """Read activations of one prompt, or of a list of prompts.

        Args:
            prompt: a string, a list of chat messages, a list of token ids; or a list of those.
            layers: block indices, or fractions of depth such as 0.5.
            adapter: the adapter that is live; None for the base model.
            positions: positions of the prompt, negative from its end; default: all.
            add_generation_prompt: for a chat, whether the header of a reply follows it.
            chat_template_kwargs: for a chat, what its template is given, such as
                `{"enable_thinking": False}`; default: the model's.
            batch_size: prompts in one forward; default 16.
            remote: run on NDIF through nnsight; the model and the adapter must be on the Hub.

        Returns:
            Activations, or a list of them where a list of prompts was given.

        Raises:
            AOToolkitError: PromptError, ChatTemplateError, ContextLengthError, LayerError,
                PositionError, UnknownAdapterError, HookNotFiredError, NonFiniteError, RemoteError.
        """
        batch = is_batch(prompt)
        prompts: Sequence[Any] = prompt if batch else [prompt]  # pyright: ignore[reportAssignmentType]
        wanted = resolve_layers(layers, self.num_layers)
        if adapter is not None and adapter not in self.adapter_names:
            raise adapters_module.unknown_adapter(adapter, self.adapter_names)
        encoded = [
            self.encode(
                p,
                add_generation_prompt=add_generation_prompt,
                chat_template_kwargs=chat_template_kwargs,
            )
            for p in prompts
        ]
        chosen = [resolve_positions(positions, len(e)) for e in encoded]
        for one in encoded:
            self._check_length(len(one))
        size = _DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if size < 1:
            raise PromptError(f"batch_size is {batch_size}; it must be at least 1.")
        # Prompts of like length together: less padding.
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        results: dict[int, Activations] = {}
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            ids, mask = self.pad([encoded[i].token_ids for i in indices])
            with self.lock:
                if remote:
                    read = self._remote_residuals(ids, mask, wanted, adapter)
                else:
                    read = self.residuals(ids, mask, layers=wanted, adapter=adapter)
                source = "nnsight remote" if remote else "nnsight"
                provenances = {
                    chat: self.provenance(
                        adapter=adapter,
                        chat=chat,
                        source=source,
                        chat_template_kwargs=chat_template_kwargs,
                    )
                    for chat in {encoded[i].chat for i in indices}
                }
            for row, i in enumerate(indices):
                one, pad = encoded[i], ids.shape[1] - len(encoded[i])
                at = [pad + position for position in chosen[i]]
                results[i] = Activations(
                    vectors=read[:, row, at].cpu(),
                    layers=wanted,
                    context_ids=one.token_ids,
                    positions=chosen[i],
                    token_ids=tuple(one.token_ids[p] for p in chosen[i]),
                    tokens=tuple(one.tokens[p] for p in chosen[i]),
                    offsets=tuple(one.offsets[p] for p in chosen[i]),
                    text=one.text,
                    messages=one.messages,
                    provenance=provenances[one.chat],
                )
        ordered = [results[i] for i in range(len(prompts))]
        return ordered if batch else ordered[0]

    def provenance(
        self,
        *,
        adapter: str | None,
        chat: bool,
        source: str,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """What `Activations` of this model carry."""
        return Provenance(
            model=self.name,
            revision=self.revision,
            base_digest=self.base_digest,
            num_layers=self.num_layers,
            adapter=adapter,
            adapter_digest=None if adapter is None else self.adapter_digest(adapter),
            chat_template_digest=chat_template_digest(self.tokenizer) if chat else None,
            dtype=str(self.dtype).removeprefix("torch."),
            source=source,
            versions=dict(_versions()),
            chat_template_kwargs=self._template_kwargs(chat_template_kwargs) if chat else {},
        )

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
        """Left-pad rows of token ids -> input ids and attention mask, on the model's device."""
        if not rows or not all(rows):
            raise PromptError("A batch needs at least one row, and each row at least one token.")
        length = max(map(len, rows))
        pad_id = self._pad_id
        ids = [[pad_id] * (length - len(row)) + list(row) for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    # Generating

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        adapter: str | None = None,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The model's reply to a prompt, or its replies to a list of prompts (one batch).

        Args:
            prompt: as in `activations`.
            adapter: the adapter that is live; None for the base model.
            max_new_tokens: the most tokens of a reply.
            do_sample: sample, as against the likeliest token each time.
            add_generation_prompt: for a chat.
            chat_template_kwargs: as in `activations`.
            **options: for `transformers`' generate.

        Returns:
            The reply without special tokens, or a list of replies.
        """
        batch = is_batch(prompt)
        prompts: Sequence[Any] = prompt if batch else [prompt]  # pyright: ignore[reportAssignmentType]
        encoded = [
            self.encode(
                p,
                add_generation_prompt=add_generation_prompt,
                chat_template_kwargs=chat_template_kwargs,
            )
            for p in prompts
        ]
        for one in encoded:
            self._check_length(len(one), max_new_tokens)
        ids, mask = self.pad([one.token_ids for one in encoded])
        new_ids = self.generate_ids(
            ids,
            mask,
            adapter=adapter,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            **options,
        )
        replies = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        return replies if batch else replies[0]

    def generate_ids(
        self,
        input_ids: Int[Tensor, "b s"],
        attention_mask: Int[Tensor, "b s"],
        *,
        adapter: str | None = None,
        **options: Any,
    ) -> Int[Tensor, "b n"]:
        """Token ids of the replies to a left-padded batch, without the prompts."""
        with self.inference(adapter):
            ids = self.hf_model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=input_ids.to(self.device),
                attention_mask=attention_mask.to(self.device),
                pad_token_id=self._pad_id,
                **options,
            )
        assert isinstance(ids, Tensor), "generate_ids gives ids: leave return_dict_in_generate out"
        return ids[:, input_ids.shape[1] :]

    # Inside

    def _template_kwargs(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        return dict(self.chat_template_kwargs if given is None else given)

    @property
    def _pad_id(self) -> int:
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)  # pyright: ignore[reportArgumentType]
        return 0

    def _check_length(self, num_tokens: int, max_new_tokens: int = 0) -> None:
        limit = self.context_length
        if limit is None or num_tokens + max_new_tokens <= limit:
            return
        new = f" and {max_new_tokens} new ones are asked for" if max_new_tokens else ""
        raise ContextLengthError(
            f"The prompt has {num_tokens} tokens{new}; the context of {self.name} is {limit}. "
            f"Shorten the prompt{' or lower max_new_tokens' if max_new_tokens else ''}."
        )

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        mask = attention_mask.to(self.device)
        inputs: dict[str, Any] = {
            "input_ids": input_ids.to(self.device),
            "attention_mask": mask,
            "use_cache": False,
        }
        if self._takes_position_ids:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return inputs

    def _block_envoy(self, layer: int) -> Any:
        if layer not in self._block_envoys:
            self._block_envoys[layer] = self._envoy.get(f"{self.blocks_path}.{layer}")
        return self._block_envoys[layer]

    def _find_blocks(self) -> tuple[str, list[nn.Module]]:
        """The block list whose reads are the model's own hidden states."""
        num_layers = blocks_module.depth(self.hf_model.config)
        candidates = blocks_module.candidate_block_lists(self.hf_model, num_layers)
        problems = {}
        for path, modules in candidates.items():
            problem = self._check_reads(path, num_layers)
            if problem is None:
                return path, list(modules)
            problems[path] = problem
        raise BlockDiscoveryError(
            f"Reading the blocks of {type(self.hf_model).__name__} does not give its hidden "
            f"states: {problems}. The architecture keeps its residual stream in another way, "
            "which this version cannot read."
        )

    def _check_reads(self, path: str, num_layers: int) -> str | None:
        ids = torch.arange(1, 5, device=self.device)[None]
        inputs = self._inputs(ids, torch.ones_like(ids))
        envoys = [self._envoy.get(f"{path}.{layer}") for layer in range(num_layers)]

        def read(_: Any) -> Any:
            reads = {i: _residual(envoy.output).clone() for i, envoy in enumerate(envoys)}
            return reads, self._envoy.output.hidden_states

        with self.inference(None):
            try:
                reads, hidden_states = run_trace(
                    self._envoy, read, **inputs, output_hidden_states=True, return_dict=True
                )
            except HookNotFiredError:
                return "its modules do not run on text"
        return blocks_module.read_error(reads, hidden_states)

    def _remote_residuals(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        layers: tuple[int, ...],
        adapter: str | None,
    ) -> Tensor:
        adapter_id = None
        if adapter is not None:
            adapter_id = remote_module.hub_id(f"adapter {adapter!r}", self.adapter_source(adapter))
        residuals = remote_module.read(
            remote_module.hub_id("a model", self._hub_id),
            revision=self.revision,
            adapter_id=adapter_id,
            blocks_path=self.blocks_path,
            layers=layers,
            inputs=self._inputs(input_ids, attention_mask),
        )
        _refuse_non_finite(residuals, attention_mask, layers)
        return residuals


def _with_nested(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [config, *(value for value in config.values() if isinstance(value, dict))]


def _residual(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    # Blocks of older transformers, and of TransformerBridge, return a tuple.
    return output[0] if isinstance(output, tuple) else output


def _base_weights(hf_model: nn.Module, adapter_names: Sequence[str]) -> dict[str, Tensor]:
    """The base's own parameters by name; PEFT keeps them when it adapts their layers."""
    parts = tuple(f".{name}." for name in adapter_names)
    return {
        # PEFT moves an adapted layer's own weights one level down.
        path.replace(".base_layer", "").replace(".original_module", ""): parameter
        for path, parameter in hf_model.named_parameters()
        if not any(part in f"{path}." for part in parts)
    }


def _refuse_unmanaged_adapters(hf_model: nn.Module) -> None:
    """Adapters that came in behind our back would be read as 'the base'."""
    if "peft_config" in hf_model.__dict__ or getattr(hf_model, "_hf_peft_config_loaded", False):
        raise AdapterStateError(
            f"This {type(hf_model).__name__} holds PEFT adapters that its TracedModel does not "
            "know. Give TracedModel the PeftModel itself, or load adapters with "
            "model.load_adapter(name, path) (not with transformers' own load_adapter)."
        )


def _refuse_non_finite(residuals: Tensor, mask: Tensor, layers: Sequence[int]) -> None:
    # A model spread over several devices gives its residuals on the last.
    bad = (~torch.isfinite(residuals)).any(-1) & mask.to(residuals.device).bool()[None]
    if bool(bad.any()):
        layer, row, position = (int(i) for i in bad.nonzero()[0])
        raise NonFiniteError(
            f"The activations of {int(bad.sum())} tokens are NaN or infinite, the first at layer "
            f"{layers[layer]}, row {row}, place {position}. Run the model in bfloat16 or float32 "
            "instead of float16, or look for broken weights."
        )


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("aotoolkit", aotoolkit.__version__)]
    for package in ("torch", "transformers", "peft", "nnsight", "transformer-lens"):
        with contextlib.suppress(PackageNotFoundError):
            found.append((package, version(package)))
    return tuple(found)


def packaged_path(path_or_id: str) -> str:
    """Where a model that ships with the package is; any other name as it is."""
    return str(_PACKAGED.get(path_or_id, path_or_id))
