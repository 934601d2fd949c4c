"""An oracle's folder on disk: found, written and inspected."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import aotoolkit
from aotoolkit.atomic import put_in_place
from aotoolkit.errors import ContractError, ModelNotFoundError
from aotoolkit.oracle.contract import CONTRACT_FILE
from aotoolkit.oracle.verification import WEIGHTS_FILE
from aotoolkit.tracing import TracedModel

if TYPE_CHECKING:
    from aotoolkit.oracle.oracle import Oracle

_EMBEDDED = Path(aotoolkit.__file__).parent / "nano" / "weights"
_PACKAGED = {
    "aotoolkit/nano": _EMBEDDED / "oracle",
    "aotoolkit/nano-latentqa": _EMBEDDED / "decoder",
}


def checkpoint_folder(path_or_id: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The package's own, a local folder as it is, else that of a downloaded Hub repository.

    Raises:
        ModelNotFoundError: There is no such folder or repository.
    """
    source = str(path_or_id)
    # First: in a checkout aotoolkit/nano is a folder too, and no oracle.
    if (packaged := _PACKAGED.get(source)) is not None:
        if not packaged.is_dir():
            raise ModelNotFoundError(
                f"{source!r} names an oracle of the embedded models, and this installation has "
                "none there. Make it with 'aotoolkit nano build --out DIR' and give its folder."
            )
        return packaged
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    looks_local = isinstance(path_or_id, Path) or source.startswith((".", "/", "~"))
    if looks_local or source.count("/") != 1:
        raise ModelNotFoundError(
            f"There is no folder {source!r}. Give an oracle's folder, or a Hub id 'owner/name'."
        )
    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelNotFoundError(
            f"{source!r} is neither a folder here nor a repository that could be downloaded from "
            f"the Hugging Face Hub: {error}"
        ) from error


def checkpoint_tokenizer(folder: Path, model: TracedModel) -> PreTrainedTokenizerBase:
    """The tokenizer saved with an oracle, which has the chat template it was trained with.

    The model's own where the folder has none.
    """
    saved = (folder / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(folder) if saved else model.tokenizer


def save_checkpoint(oracle: "Oracle", folder: str | os.PathLike[str]) -> Path:
    """See `Oracle.save_pretrained`."""
    peft_model = oracle.model.peft_model
    if oracle.adapter is None or peft_model is None:
        raise ContractError("This oracle asks the base itself, so there is no adapter to save.")
    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / CONTRACT_FILE).is_file():
        raise FileExistsError(
            f"{target} exists and is no oracle, so it is not replaced; choose another folder."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as parent:
        made = Path(parent) / "new"
        made.mkdir()
        with oracle.model.lock:
            weights = get_peft_model_state_dict(
                peft_model, adapter_name=oracle.adapter, save_embedding_layers=False
            )
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
                made / WEIGHTS_FILE,
                metadata={"format": "pt"},
            )
            config = dataclasses.replace(peft_model.peft_config[oracle.adapter])
        config.base_model_name_or_path = oracle.contract.base_model
        config.inference_mode = True
        config.save_pretrained(str(made))
        oracle.tokenizer.save_pretrained(made)
        oracle.transform.save(made)
        oracle.contract.write(made)
        put_in_place(made, target)
    return target
