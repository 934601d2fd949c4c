"""The README of an oracle, and what goes to the Hub."""

import dataclasses

import pytest
import tiny
import yaml
from tiny_examples import contract, examples

from aotoolkit.errors import ContractError
from aotoolkit.tracing import TracedModel
from aotoolkit.training import TrainingConfig, model_card, push_to_hub, train_oracle
from aotoolkit.training.validation import Figures, ValidationFigures

FIGURES = Figures(
    n=12,
    loss=0.5,
    exact_match=0.75,
    auc=0.9,
    loss_without=1.5,
    exact_match_without=0.25,
    auc_without=0.5,
)


def card(**fields):
    made = dataclasses.replace(contract(tiny.tokenizer()), lora_rank=8, lora_alpha=16, **fields)
    return model_card.model_card(made, ValidationFigures(overall=FIGURES, sources={"a|b": FIGURES}))


def test_figures_stand_beside_their_controls():
    text = card(training_data=({"name": "texts", "examples": 9, "digest": "f" * 64},))
    assert "| a\\|b | 12 | 0.500 (1.500) | 0.750 (0.250) | 0.900 (0.500) |" in text
    assert "| texts | 9 | ffffffffffff... |" in text


def test_a_card_says_that_figures_are_without_what_is_recalled_when_asked():
    assert "without what is recalled" in card(
        transform="mapped_recalled", transform_digest="f" * 64
    )
    assert "recalled" not in card()


def test_the_example_reads_as_the_oracle_was_trained():
    assert 'about?", acts)' in card(layers_per_prompt="several")
    assert 'about?", acts.layer(1))' in card(layers_per_prompt="one")


@pytest.mark.parametrize("name", ["me/model", 'a "quoted": name', "back\\slash", "- list"])
def test_the_front_matter_is_yaml_whatever_the_base_is_called(name):
    _, matter, _ = card(base_model=name, licence="MIT").split("---\n", 2)
    values = yaml.safe_load(matter)
    assert values["base_model"] == name
    assert values["license"] == "mit"


def test_a_card_without_figures_says_so():
    assert "None were held out." in model_card.model_card(contract(tiny.tokenizer()), None)


class FakeHub:
    calls: list = []  # noqa: RUF012

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, **options):
        self.calls.append(("upload", options))

        class Commit:
            commit_url = "https://huggingface.co/me/oracle/commit/1"

        return Commit


def test_an_oracle_is_pushed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "HfApi", FakeHub)
    with pytest.raises(ContractError, match="does not exist"):
        push_to_hub(tmp_path, "me/oracle")
    model = TracedModel(tiny.model(num_layers=3), tiny.tokenizer())
    settings = TrainingConfig(
        output_dir=tmp_path, max_steps=1, batch_size=2, lora_rank=2, report_to=(), progress=False
    )
    result = train_oracle(model, examples(4), settings, contract=contract(model.tokenizer))
    FakeHub.calls.clear()
    assert push_to_hub(result.folder, "me/oracle", token="hf_x").endswith("commit/1")
    assert FakeHub.calls[0] == ("token", "hf_x")
    assert FakeHub.calls[1] == ("create", "me/oracle", {"private": True, "exist_ok": True})
    assert FakeHub.calls[2][1]["folder_path"] == result.folder
    (result.folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ContractError, match=r"no adapter_model\.safetensors"):
        push_to_hub(result.folder, "me/oracle")
