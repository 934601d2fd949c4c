"""Which PEFT adapter is live: made so, proved, and put back.

PEFT's own `set_adapter` and `disable_adapter` change `requires_grad` flags as they go (leaving
`disable_adapter()` makes a frozen adapter trainable) and walk all modules. What decides a forward
is only two attributes of each adapted layer. They are set here directly, on a cached list of
those layers, so that gradients' flags are never touched and a switch costs microseconds; the
result is then read back through PEFT's public properties.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aotoolkit.errors import AdapterLoadError, AdapterStateError, UnknownAdapterError
from aotoolkit.tracing.digest import DigestCache, sha256_of

_AdaptedLayer = BaseTunerLayer | AuxiliaryTrainingWrapper
# What a config says that makes no difference to what is added to the layers.
_NOT_STRUCTURE = ("base_model_name_or_path", "revision", "inference_mode")


@dataclass(frozen=True)
class _Template:
    """An adapter that PEFT attached, to be copied for others of the same config.

    PEFT walks all modules of the model some thirty times for each adapter that it adds, those of
    the other adapters among them, so that loading many takes a time that grows with the square of
    their number.

    Attributes:
        adapter: its name.
        places: key in its file of weights -> name in `AdapterSwitch._contents`.
        numbers: its scalings, as they were then.
    """

    adapter: str
    places: Mapping[str, str]
    numbers: Mapping[str, float]


class AdapterSwitch:
    """Makes exactly one adapter of a `PeftModel`, or none, take part in the forward."""

    def __init__(self, peft_model: PeftModel) -> None:
        self.peft_model = peft_model
        self._base = peft_model.get_base_model()
        self._seen: tuple[tuple[str, int], ...] | None = None
        self._layers: list[_AdaptedLayer] = []
        self._modules: list[nn.Module] = []
        self._digests: dict[str, DigestCache] = {}
        self._templates: dict[str, _Template] = {}
        self._refresh()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(self.peft_model.peft_config)

    @property
    def modules(self) -> list[nn.Module]:
        """All modules of the base, as of the adapters that are loaded now."""
        self._refresh()
        return self._modules

    def _refresh(self) -> None:
        # An adapter can be loaded through the PeftModel as well as through us; a config object
        # that we have not seen says so.
        configs = self.peft_model.peft_config
        seen = tuple((name, id(config)) for name, config in configs.items())
        if seen == self._seen:
            return
        for name, config in configs.items():
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise AdapterLoadError(
                    f"Adapter {name!r} is of type {config.peft_type}, which adds to the prompt "
                    "instead of the layers. Only adapters inside the layers (LoRA and its "
                    "relatives) can be switched for each forward."
                )
            if getattr(config, "bias", "none") != "none":
                raise AdapterLoadError(
                    f"Adapter {name!r} trains biases of the base model (bias={config.bias!r}): "  # pyright: ignore[reportAttributeAccessIssue]
                    "without it the base would no longer be the base. Train it with bias='none'."
                )
        self._modules = list(self._base.modules())
        layers: list[_AdaptedLayer] = [m for m in self._modules if isinstance(m, _AdaptedLayer)]
        if layers != self._layers:
            self._templates = {}  # their places are by the number of the layer
        self._layers = layers
        self._digests = {}
        self._seen = seen

    def delete(self, adapter: str) -> None:
        """Remove an adapter. Where it was live, the base is live afterwards."""
        if adapter not in self.peft_model.peft_config:
            raise unknown_adapter(adapter, self.names)
        with _flags_kept(self.peft_model):
            before = self._state()
            self.peft_model.delete_adapter(adapter)
            # PEFT would make some other adapter live instead.
            if self.peft_model.active_adapter == adapter and self.names:
                self.peft_model.active_adapter = self.names[0]
            for layer, (active, disabled) in before.items():
                kept = [name for name in _as_list(active) if name != adapter]
                _set(layer, kept, disabled=disabled or not kept)
        self._refresh()

    def _keep_template(self, adapter: str, structure: str, weights: Mapping[str, Tensor]) -> None:
        """Remembers an adapter as a template, where a copy of its parts is all that it is."""
        tensors, numbers = self._contents(adapter)
        if not all(_is_plain(layer, adapter) for layer in self._layers):
            return
        state = get_peft_model_state_dict(
            self.peft_model, adapter_name=adapter, save_embedding_layers=False
        )
        by_address = {tensor.data_ptr(): place for place, tensor in tensors.items()}
        places = {key: by_address.get(tensor.data_ptr(), "") for key, tensor in state.items()}
        # As the file has them: weights that PEFT converts on the way are not to be copied.
        if places.keys() == weights.keys() and sorted(places.values()) == sorted(tensors):
            as_they_are = all(
                tensors[place].equal(weights[key].to(tensors[place]))
                for key, place in places.items()
            )
            if as_they_are:
                self._templates[structure] = _Template(adapter, places, numbers)

    def _copy_template(
        self, name: str, config: PeftConfig, structure: str, weights: Mapping[str, Tensor]
    ) -> bool:
        """Attaches an adapter as a copy of one of the same structure; whether there was one."""
        template = self._templates.get(structure)
        if template is None or template.adapter not in self.peft_model.peft_config:
            return False
        theirs, numbers = self._contents(template.adapter)
        if numbers != template.numbers:
            return False  # somebody scaled it since
        if weights.keys() != template.places.keys() or any(
            weights[key].shape != theirs[place].shape for key, place in template.places.items()
        ):
            return False
        for layer in self._layers:
            for held in _held(layer, template.adapter):
                part = held[template.adapter]
                if isinstance(part, nn.Module):
                    part = copy.deepcopy(part).train(self._base.training)
                held[name] = part
        # PEFT completes a config as it attaches it.
        completed = copy.copy(self.peft_model.peft_config[template.adapter])
        completed.base_model_name_or_path = config.base_model_name_or_path
        completed.revision = config.revision
        self.peft_model.peft_config[name] = completed
        self._refresh()
        tensors, _ = self._contents(name)
        assert tensors.keys() == theirs.keys(), "a copy has the parts of what it is of"
        for key, place in template.places.items():
            tensors[place].requires_grad_(False).copy_(weights[key])
        return True

    def _state(self) -> dict[_AdaptedLayer, tuple[str | list[str], bool]]:
        return {layer: (layer._active_adapter, layer._disable_adapters) for layer in self._layers}

    def digest(self, adapter: str) -> str:
        """SHA-256 over the weights and scalings of an adapter; changes when they do."""
        self._refresh()
        if adapter not in self.peft_model.peft_config:
            raise unknown_adapter(adapter, self.names)
        if adapter not in self._digests:
            self._digests[adapter] = DigestCache()
        tensors, numbers = self._contents(adapter)
        return self._digests[adapter].get(tensors, lambda: sha256_of(tensors, numbers), numbers)

    def _contents(self, adapter: str) -> tuple[dict[str, Tensor], dict[str, float]]:
        """All that the adapter adds to the layers: tensors and numbers (scalings) by name."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for index, layer in enumerate(self._layers):
            for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
                held = getattr(layer, attribute, None)
                if not hasattr(held, "keys") or adapter not in held:  # pyright: ignore[reportOperatorIssue]
                    continue
                value = held[adapter]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]
                name = f"{index}.{attribute}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                elif isinstance(value, nn.Module):
                    for path, parameter in value.named_parameters():
                        tensors[f"{name}.{path}"] = parameter
                elif isinstance(value, int | float):
                    numbers[name] = value
        return tensors, numbers

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Live inside: `adapter`, or the base alone for None. Former state after, even on error."""
        self._refresh()
        if adapter is not None and adapter not in self.peft_model.peft_config:
            raise unknown_adapter(adapter, self.names)
        if self._is_live(adapter):
            yield
            return
        before = self._state()
        try:
            for layer in before:
                active = layer.active_adapters if adapter is None else self._wanted(layer, adapter)
                _set(layer, active, disabled=adapter is None)
            if not self._is_live(adapter):
                raise AdapterStateError(
                    f"After switching to {adapter!r} the adapted layers say otherwise: merged "
                    "adapters, or another version of PEFT. Unmerge the adapters "
                    "(peft_model.unmerge_adapter()) and try again."
                )
            yield
        finally:
            for layer, (active, disabled) in before.items():
                _set(layer, active, disabled=disabled)

    def _is_live(self, adapter: str | None) -> bool:
        for layer in self._layers:
            if isinstance(layer, BaseTunerLayer) and layer.merged:
                return False
            if layer.disable_adapters != (adapter is None):
                return False
            if adapter is not None and layer.active_adapters != self._wanted(layer, adapter):
                return False
        return True

    @staticmethod
    def _wanted(layer: _AdaptedLayer, adapter: str) -> list[str]:
        # A fully trained module (modules_to_save) that this adapter does not have must fall back
        # to the original, which PEFT does for an empty list only.
        if isinstance(layer, AuxiliaryTrainingWrapper) and adapter not in layer._adapters:
            return []
        return [adapter]


def _held(layer: _AdaptedLayer, adapter: str) -> list[Any]:
    """All mappings of a layer that hold something of an adapter."""
    own = [value for name, value in vars(layer).items() if not name.startswith("_")]
    return [
        held
        for held in (*own, *vars(layer)["_modules"].values())
        if isinstance(held, dict | nn.ModuleDict | nn.ParameterDict | BufferDict)
        and adapter in held
    ]


def _is_plain(layer: _AdaptedLayer, adapter: str) -> bool:
    """Whether all that a layer holds of an adapter are modules of its own, and plain values."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return adapter not in layer._adapters
    return all(
        isinstance(held, nn.ModuleDict)
        or (isinstance(held, dict) and isinstance(held[adapter], int | float | str | None))
        for held in _held(layer, adapter)
    )


def _structure(config: PeftConfig) -> str:
    """What a config says of the parts of an adapter."""
    said = {key: value for key, value in config.to_dict().items() if key not in _NOT_STRUCTURE}
    return json.dumps(
        said, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else repr(v)
    )


def unknown_adapter(adapter: str, names: tuple[str, ...]) -> UnknownAdapterError:
    """The error for a name that is not there."""
    known = ", ".join(map(repr, names)) or "none"
    return UnknownAdapterError(
        f"No adapter {adapter!r}; loaded: {known}. None means the base model. Load another with "
        "model.load_adapter(name, path)."
    )


def load_adapter(
    base: nn.Module, switch: AdapterSwitch | None, name: str, path: str | Path
) -> AdapterSwitch:
    """Attach the adapter in `path` (a folder, or a Hub id) to `base` under `name`, frozen.

    The first adapter wraps `base` in a `PeftModel`, which injects its layers in place. No
    `requires_grad` flag that was there before changes.

    Raises:
        AdapterLoadError: no such folder, no config or safetensors weights in it, the name is
            taken, or the weights do not fit the base exactly.
    """
    _check_name(switch, name)
    folder = _adapter_folder(path)
    weights = _read_weights(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterLoadError(f"{folder}/adapter_config.json cannot be read: {error}") from error
    config.inference_mode = True
    _check_shapes(base, weights, folder)
    structure = _structure(config)
    if switch is not None and switch._copy_template(name, config, structure, weights):
        return switch
    result = _attach(base, switch, name, config, weights=weights, source=str(folder))
    result._keep_template(name, structure, weights)
    return result


def add_adapter(
    base: nn.Module, switch: AdapterSwitch | None, name: str, config: PeftConfig
) -> AdapterSwitch:
    """Attach a new, untrained adapter to `base` under `name`; its weights require gradients."""
    _check_name(switch, name)
    result = _attach(base, switch, name, config, weights=None, source=f"config of {name!r}")
    for tensor in result._contents(name)[0].values():
        tensor.requires_grad_(True)
    return result


def _check_name(switch: AdapterSwitch | None, name: str) -> None:
    if not name or "." in name or "/" in name:
        raise AdapterLoadError(
            f"An adapter cannot be called {name!r}: PEFT makes the name a part of module names. "
            "Choose a name without '.' and '/'."
        )
    if switch is not None and name in switch.names:
        raise AdapterLoadError(
            f"The model has an adapter {name!r} already. Choose another name, or call "
            f"model.delete_adapter({name!r}) first."
        )


def _attach(
    base: nn.Module,
    switch: AdapterSwitch | None,
    name: str,
    config: PeftConfig,
    *,
    weights: dict[str, Tensor] | None,
    source: str,
) -> AdapterSwitch:
    """Inject an adapter of this config; with `weights`, they must fill it exactly."""
    peft_model = switch.peft_model if switch else None
    before = switch._state() if switch else {}
    with _flags_kept(base):
        try:
            if peft_model is None:
                # PEFT warns that it changes the model in place, which is what is wanted, and looks
                # at an attribute of which newer versions of transformers warn.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                    peft_model = get_peft_model(base, config, adapter_name=name)  # pyright: ignore[reportArgumentType]
                assert isinstance(peft_model, PeftModel)
            else:
                peft_model.add_adapter(name, config)
            if weights is not None:
                _fill(peft_model, name, weights, source)
            result = switch or AdapterSwitch(peft_model)
            result._refresh()
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            if peft_model is not None and name in peft_model.peft_config:
                if switch is None:
                    peft_model.unload()
                else:
                    switch._refresh()
                    switch.delete(name)
            if isinstance(error, AdapterLoadError):
                raise
            raise AdapterLoadError(
                f"The adapter {source} does not fit {type(base).__name__}: {error}. Load it on "
                "the base model that it was trained on."
            ) from error
    # What was live stays live: of a plain model, the base.
    base_live = all(disabled for _, disabled in before.values())
    for layer in result._layers:
        active, disabled = before.get(layer, (layer.active_adapters, base_live))
        _set(layer, active, disabled=disabled)
    return result


@contextlib.contextmanager
def _flags_kept(base: nn.Module) -> Iterator[None]:
    """Keep `requires_grad` and train/eval mode of what is there now; the new takes base's mode."""
    flags = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    modes = {module: module.training for module in base.modules()}
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module in base.modules():
            module.training = modes.get(module, base.training)


def _set(layer: _AdaptedLayer, active: str | list[str], *, disabled: bool) -> None:
    layer._active_adapter = active  # pyright: ignore[reportAttributeAccessIssue]
    layer._disable_adapters = disabled


def _as_list(active: str | list[str]) -> list[str]:
    return [active] if isinstance(active, str) else list(active)


def _fill(peft_model: PeftModel, name: str, weights: dict[str, Tensor], source: str) -> None:
    expected = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    if missing or unexpected:
        raise AdapterLoadError(
            f"The weights of {source} do not attach: {len(weights) - len(unexpected)} of "
            f"{len(expected)} expected tensors are there; missing {missing[:3]}, not in the model "
            f"{unexpected[:3]}. Load it on the base model that it was trained on."
        )
    set_peft_model_state_dict(peft_model, weights, adapter_name=name)


def _adapter_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") != 1:
            raise AdapterLoadError(
                f"There is no adapter folder {str(path)!r}. Give a folder with "
                "adapter_config.json and adapter_model.safetensors, or a Hub id 'owner/name'."
            )
        try:
            folder = Path(
                snapshot_download(
                    str(path), allow_patterns=["adapter_config.json", "adapter_model.safetensors"]
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise AdapterLoadError(
                f"{str(path)!r} is neither a folder here nor an adapter that could be downloaded "
                f"from the Hugging Face Hub: {error}"
            ) from error
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            there = sorted(entry.name for entry in folder.iterdir())[:8]
            hint = (
                " Weights in pickle files (.bin) are not loaded: save them as safetensors."
                if "adapter_model.bin" in there
                else ""
            )
            raise AdapterLoadError(
                f"The adapter folder {folder} has no {file}; it has {there or 'nothing'}.{hint}"
            )
    return folder


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise AdapterLoadError(
            f"{folder}/adapter_model.safetensors cannot be read: {error}. Download or save it "
            "again."
        ) from error


def _check_shapes(base: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Refuse another base's LoRA before PEFT has begun to change this one."""
    for key, tensor in weights.items():
        path, lora, _ = key.removeprefix("base_model.model.").partition(".lora_")
        if not lora:
            continue
        path = path.replace(".base_layer", "")  # the second of two adapted weights of one module
        try:
            module = base.get_submodule(path)
        except AttributeError as error:
            raise AdapterLoadError(
                f"The adapter {folder} changes {path}, which {type(base).__name__} does not have. "
                "Load it on the base model that it was trained on."
            ) from error
        if not key.endswith(("lora_A.weight", "lora_B.weight")):
            continue
        side = "in_features" if key.endswith("lora_A.weight") else "out_features"
        found = tensor.shape[1 if side == "in_features" else 0]
        wanted = getattr(module, side, None)
        if wanted is not None and found != wanted:
            raise AdapterLoadError(
                f"The adapter {folder} was trained on another base: its {key} has {side} {found}, "
                f"the model's {path} has {wanted}."
            )
