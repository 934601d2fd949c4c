"""The README of an oracle: what it was trained on, how it did, how it is asked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from aotoolkit.atomic import replacing
from aotoolkit.errors import ContractError
from aotoolkit.oracle.contract import CONTRACT_FILE, OracleContract
from aotoolkit.training.validation import Figures, ValidationFigures

CARD_FILE = "README.md"


def model_card(contract: OracleContract, figures: ValidationFigures | None) -> str:
    """The model card as Markdown, with the front matter that the Hub reads.

    Args:
        contract: the oracle's.
        figures: of its held-out examples, if there were any.
    """
    header = ["---", "library_name: peft", f"base_model: {_quoted(contract.base_model)}"]
    if contract.licence:
        header.append(f"license: {_quoted(contract.licence.lower())}")
    header += ["tags:", "- activation-oracle", "- interpretability", "- lora", "---"]
    scale = "alpha / sqrt(r)" if contract.rslora else "alpha / r"
    several = contract.layers_per_prompt == "several"
    read = "acts" if several else f"acts.layer({contract.read_layers[0]})"
    lines = [
        *header,
        "",
        f"# Activation oracle for {contract.base_model}",
        "",
        f"A LoRA adapter (rank {contract.lora_rank}, alpha {contract.lora_alpha}, scale {scale}) "
        f"with which `{contract.base_model}` answers questions about its own activations.",
        "",
        "```python",
        "import aotoolkit as ao",
        "",
        f"model = ao.TracedModel.from_pretrained({contract.base_model!r})",
        'oracle = ao.Oracle.from_pretrained("THIS_REPOSITORY", model=model)',
        f'acts = model.activations("Some text.", layers={list(contract.read_layers)})',
        f'oracle.ask("What is this text about?", {read})',
        "```",
        "",
        "## How it reads",
        "",
        f"Activations after blocks {list(contract.read_layers)} "
        f"({contract.layers_per_prompt} in a prompt), of the base alone; transform "
        f"`{contract.transform}`; injected after block {contract.inject_layer}, "
        f"`{contract.formula}` with coefficient {contract.coefficient:g}. "
        f"`{CONTRACT_FILE}` has all that is needed to use it right.",
        "",
        "## Training data",
        "",
        *_data(contract.training_data),
        "",
        "## Held-out figures",
        "",
        *(
            ["As it was trained, without what is recalled when it is asked.", ""]
            if contract.transform == "mapped_recalled"
            else []
        ),
        *_figures(figures),
        "",
        "An oracle can be wrong and sound certain. Compare each answer with the controls that "
        "`ask` returns beside it.",
        "",
    ]
    return "\n".join(lines)


def write_model_card(
    folder: str | os.PathLike[str], contract: OracleContract, figures: ValidationFigures | None
) -> Path:
    """Writes the card into an oracle's folder; returns its path."""
    path = Path(folder) / CARD_FILE
    with replacing(path) as temporary:
        temporary.write_text(model_card(contract, figures), encoding="utf-8")
    return path


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Uploads a saved oracle to the Hugging Face Hub.

    Args:
        folder: what `train_oracle` or `Oracle.save_pretrained` wrote.
        repo_id: `owner/name`; made if it does not exist.
        private: of a new repository.
        token: default: that of `hf auth login`.
        revision: branch to upload to.

    Returns:
        The address of the commit.

    Raises:
        ContractError: the folder holds no oracle.
    """
    path = Path(folder)
    OracleContract.read(path)
    if not (path / "adapter_model.safetensors").is_file():
        raise ContractError(
            f"{path} has a contract and no adapter_model.safetensors. Give the folder that "
            "Oracle.save_pretrained wrote."
        )
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=path,
        revision=revision,
        commit_message="Oracle trained with aotoolkit",
        ignore_patterns=[".*"],
    )
    return str(commit.commit_url)


def _data(parts: tuple[Mapping[str, Any], ...]) -> list[str]:
    if not parts:
        return ["Not recorded."]
    columns = [name for name in ("name", "examples", "digest") if any(name in p for p in parts)]
    rows = [[_cell(part.get(name, "")) for name in columns] for part in parts]
    return _table(columns, rows)


def _figures(figures: ValidationFigures | None) -> list[str]:
    if figures is None:
        return ["None were held out."]
    columns = ["source", "n (examples)", "loss", "exact match", "AUC"]
    rows = [_row(name, found) for name, found in figures.sources.items()]
    rows.append(_row("all", figures.overall))
    return [
        "In brackets: the same prompts with nothing injected. Only the difference comes from "
        "activations.",
        "",
        *_table(columns, rows),
    ]


def _row(name: str, found: Figures) -> list[str]:
    pairs = [
        (found.loss, found.loss_without),
        (found.exact_match, found.exact_match_without),
        (found.auc, found.auc_without),
    ]
    cells = ["" if a is None or b is None else f"{a:.3f} ({b:.3f})" for a, b in pairs]
    return [_cell(name), str(found.n), *cells]


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: object) -> str:
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
