"""The two reference implementations' inputs and outputs, and tiny models to ask."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.tracing import TracedModel


@dataclass(frozen=True)
class Golden:
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    activation_oracle: dict
    activation_oracle_tensors: dict[str, Tensor]
    latentqa: dict
    latentqa_tensors: dict[str, Tensor]

    @property
    def contract(self) -> OracleContract:
        """The contract of the golden Activation Oracle, written by hand."""
        return describe_tokenizer(
            OracleContract(
                base_model="model",
                dialect="activation_oracle",
                prefix_template="Layer: {layer}\n{placeholders} \n",
                placeholder=" ?",
                chat_template_kwargs={"enable_thinking": False},
                read_layers=(2, 4, 6),
                layers_per_prompt="one",
                inject_layer=1,
                formula="add_norm_matched",
                coefficient=1.0,
                transform="none",
                position_ids="from_mask",
            ),
            self.tokenizer,
        )

    def latentqa_contract(self, *, position_ids: str) -> OracleContract:
        return describe_tokenizer(
            OracleContract(
                base_model="model",
                dialect="latentqa",
                prefix_template="{placeholders}",
                placeholder=" ?",
                read_layers=(4,),
                layers_per_prompt="one",
                inject_layer=0,
                formula="replace",
                coefficient=1.0,
                transform="none",
                position_ids=position_ids,
            ),
            self.tokenizer,
        )

    def latentqa_texts(self, case: dict) -> list[tuple[str, str]]:
        """Question and answer of each row, read back from the recorded decoder ids."""
        texts = []
        for ids in case["decoder_input_ids"]:
            turns = self.tokenizer.decode(ids).split("<|im_start|>")
            question = turns[3].removeprefix("user\n").removesuffix("<|im_end|>\n")
            answer = turns[4].removeprefix("reflect\n").removesuffix("<|im_end|>\n")
            texts.append((question, answer))
        return texts


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def golden(request, shared) -> Golden:
    folder = shared / "golden" / request.param
    if not folder.is_dir():
        pytest.skip(f"no reference outputs at {folder}")
    return Golden(
        folder,
        AutoTokenizer.from_pretrained(folder / "model"),
        json.loads((folder / "activation_oracle.json").read_text()),
        load_file(folder / "activation_oracle.safetensors"),
        json.loads((folder / "latentqa.json").read_text()),
        load_file(folder / "latentqa.safetensors"),
    )


@pytest.fixture(scope="session")
def golden_model(golden) -> TracedModel:
    return TracedModel.from_pretrained(
        golden.folder / "model",
        device="cpu",
        adapters={"target": golden.folder / "adapters" / "target"},
    )


@pytest.fixture(scope="session")
def golden_oracle(golden, golden_model) -> Oracle:
    return Oracle.from_pretrained(golden.folder / "adapters" / "oracle", model=golden_model)


@pytest.fixture
def acts(golden_model):
    """Five tokens of a chat, read with the adapter `target`."""
    chat = [{"role": "user", "content": "what is the secret word?"}]
    return golden_model.activations(chat, layers=4, adapter="target")[-5:]
