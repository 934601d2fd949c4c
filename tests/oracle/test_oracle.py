"""Loading, asking and saving, and what each wrong input is told."""

import dataclasses
import json
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import GenerationConfig, PreTrainedTokenizerFast

import aotoolkit
from aotoolkit.errors import (
    AdapterLoadError,
    ChatTemplateError,
    ContextLengthError,
    ContractError,
    GenerationError,
    IncompatibleActivationsError,
    LayerError,
    ModelNotFoundError,
    NonFiniteError,
    PlaceholderError,
    QuestionError,
    UnknownAdapterError,
    UntrainedLayerWarning,
    VerificationError,
)
from aotoolkit.oracle import Oracle, VectorTransform, find_contract, inspect_checkpoint
from aotoolkit.oracle.batch import Row
from aotoolkit.oracle.checkpoint import _PACKAGED
from aotoolkit.oracle.contract import CONTRACT_FILE
from aotoolkit.oracle.prompt import OraclePrompt
from aotoolkit.oracle.running import batches
from aotoolkit.oracle.transform import TRANSFORM_FILE
from aotoolkit.oracle.verification import WEIGHTS_FILE
from aotoolkit.tracing import TracedModel

QUESTION = "What is the secret word?"
SHORT = {"max_new_tokens": 4}


@pytest.fixture
def checkpoint(golden, tmp_path):
    """A copy of the golden oracle's folder, to damage."""
    return shutil.copytree(golden.folder / "adapters" / "oracle", tmp_path / "oracle")


def edit_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))


# Loading


def test_the_oracle_shares_the_targets_weights(golden_model, golden_oracle):
    assert golden_oracle.model is golden_model
    assert {"target", golden_oracle.adapter} <= set(golden_model.adapter_names)


def test_what_was_verified_is_kept(golden_oracle):
    checks = {check.name: check for check in golden_oracle.verified}
    assert {"weights", "weights_non_zero", "wiring", "read_layers", "lora_rank"} <= set(checks)
    assert all(check.ok is not False for check in checks.values())
    assert checks["base_digest"].ok is None, "a published config does not record it"


def test_a_second_load_takes_another_name_and_goes_when_it_fails(golden_model, checkpoint):
    before = golden_model.adapter_names
    oracle = Oracle.from_pretrained(checkpoint, model=golden_model)
    assert oracle.adapter not in before
    golden_model.delete_adapter(oracle.adapter)
    edit_json(checkpoint / "ao_config.json", lora_r=64)
    with pytest.raises(VerificationError, match="lora_rank: found 4, expected 64"):
        Oracle.from_pretrained(checkpoint, model=golden_model)
    assert golden_model.adapter_names == before


def test_loading_the_same_again_loads_nothing(golden_model, checkpoint, acts):
    before = golden_model.adapter_names
    first = Oracle.from_pretrained(checkpoint, model=golden_model)
    again = Oracle.from_pretrained(str(checkpoint), model=golden_model)
    assert again.adapter == first.adapter
    assert again.ask(QUESTION, acts, **SHORT).text == first.ask(QUESTION, acts, **SHORT).text
    assert len(golden_model.adapter_names) == len(before) + 1
    assert inspect_checkpoint(checkpoint, model=golden_model).ok
    assert first.adapter in golden_model.adapter_names, "inspecting took it away"

    with torch.no_grad():
        weights = golden_model.peft_model.named_parameters()
        next(p for n, p in weights if f".{first.adapter}." in n).add_(1.0)
    fresh = Oracle.from_pretrained(checkpoint, model=golden_model)
    assert fresh.adapter != first.adapter, "the folder holds something else by now"
    fresh.unload()
    first.unload()
    assert golden_model.adapter_names == before
    with pytest.raises(UnknownAdapterError):
        again.unload()
    with pytest.raises(ContractError, match="no adapter to unload"):
        Oracle(golden_model, None, again.contract).unload()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_onto_layer": 99}, "inject_layer: found 99, expected blocks 0 to 7"),
        ({"act_layer_combinations": [[4], [8]]}, "read_layers"),
        ({"special_token": " ??"}, "placeholder"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused(golden_model, checkpoint, changes, message):
    edit_json(checkpoint / "ao_config.json", **changes)
    with pytest.raises(VerificationError, match=message):
        Oracle.from_pretrained(checkpoint, model=golden_model)


@pytest.mark.parametrize("field", ["base_digest", "tokenizer_digest", "placeholder_id"])
def test_another_base_or_tokenizer_is_refused(golden_model, checkpoint, field):
    contract = find_contract(checkpoint)
    wrong = dataclasses.replace(contract, **{field: 5 if field.endswith("id") else "0" * 64})
    with pytest.raises(VerificationError, match=field):
        Oracle.from_pretrained(checkpoint, model=golden_model, contract=wrong)


def test_another_base_can_be_allowed(golden_model, checkpoint, acts):
    contract = dataclasses.replace(find_contract(checkpoint), base_digest="0" * 64)
    with pytest.raises(VerificationError, match=r"dtype.*quantised.*allow_other_base"):
        Oracle.from_pretrained(checkpoint, model=golden_model, contract=contract)
    oracle = Oracle.from_pretrained(
        checkpoint, model=golden_model, contract=contract, allow_other_base=True
    )
    golden_model.delete_adapter(oracle.adapter)
    (check,) = (check for check in oracle.verified if check.name == "base_digest")
    assert check.ok is None
    assert check.found != check.expected
    wrong = dataclasses.replace(contract, tokenizer_digest="0" * 64)
    with pytest.raises(VerificationError, match="tokenizer_digest"):
        Oracle.from_pretrained(
            checkpoint, model=golden_model, contract=wrong, allow_other_base=True
        )


def test_an_adapter_that_does_nothing_is_refused(golden_model, checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / WEIGHTS_FILE)
    zeroed = {k: v * 0 if "lora_B" in k else v for k, v in weights.items()}
    save_file(zeroed, checkpoint / WEIGHTS_FILE)
    with pytest.raises(VerificationError, match="weights_non_zero: found 0"):
        Oracle.from_pretrained(checkpoint, model=golden_model)
    assert not inspect_checkpoint(checkpoint).ok


def test_an_injection_that_does_not_reach_the_answer_is_refused(golden_model, checkpoint):
    contract = dataclasses.replace(find_contract(checkpoint), coefficient=0.0)
    with pytest.raises(VerificationError, match="wiring"):
        Oracle.from_pretrained(checkpoint, model=golden_model, contract=contract)


def test_an_adapter_for_another_base_is_refused(golden_model, checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / WEIGHTS_FILE)
    wider = {k: torch.zeros(4, 48) if "lora_A" in k else v for k, v in weights.items()}
    save_file(wider, checkpoint / WEIGHTS_FILE)
    with pytest.raises(AdapterLoadError):
        Oracle.from_pretrained(checkpoint, model=golden_model)


def test_a_folder_without_weights_is_refused(golden_model, checkpoint):
    (checkpoint / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterLoadError, match=WEIGHTS_FILE):
        Oracle.from_pretrained(checkpoint, model=golden_model)


def test_a_bare_adapter_needs_a_contract(golden, golden_model, checkpoint):
    (checkpoint / "ao_config.json").unlink()
    with pytest.raises(ContractError, match="contract="):
        Oracle.from_pretrained(checkpoint, model=golden_model)
    oracle = Oracle.from_pretrained(checkpoint, model=golden_model, contract=golden.contract)
    golden_model.delete_adapter(oracle.adapter)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(ModelNotFoundError):
        Oracle.from_pretrained(tmp_path / "nothing")


def test_a_base_that_cannot_be_loaded_says_what_to_do(checkpoint, tmp_path):
    contract = find_contract(checkpoint)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    for base in ("nobody/nothing", str(damaged), str(tmp_path / "nowhere")):
        named = dataclasses.replace(contract, base_model=base)
        with pytest.raises(ModelNotFoundError, match="model="):
            Oracle.from_pretrained(checkpoint, contract=named)


def test_the_embedded_oracle_finds_its_base(monkeypatch):
    # Where a folder of that name stands, as in a checkout, the name is the oracle's all the same.
    monkeypatch.chdir(Path(aotoolkit.__file__).parents[1])
    oracle = Oracle.from_pretrained("aotoolkit/nano")
    assert oracle.model.name == oracle.contract.base_model == "aotoolkit/nano"
    assert oracle.model.has_base_digest(oracle.contract.base_digest)


def test_an_embedded_oracle_that_does_not_ship_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setitem(_PACKAGED, "aotoolkit/nano-latentqa", tmp_path / "decoder")
    with pytest.raises(ModelNotFoundError, match="aotoolkit nano build"):
        Oracle.from_pretrained("aotoolkit/nano-latentqa")


def test_a_transform_that_is_not_there_is_refused(golden_model, checkpoint):
    contract = dataclasses.replace(find_contract(checkpoint), transform="centred_by_layer")
    with pytest.raises(VerificationError, match="transform: found none, expected centred_by_layer"):
        Oracle.from_pretrained(checkpoint, model=golden_model, contract=contract)
    with pytest.raises(ContractError, match="transform"):
        Oracle(golden_model, None, contract)


# Saving


def centred(golden_model) -> VectorTransform:
    mean = torch.randn(3, golden_model.d_model, generator=torch.Generator().manual_seed(0))
    return VectorTransform("centred_by_layer", (2, 4, 6), mean)


def test_save_and_load_give_the_same_oracle(golden_model, golden_oracle, acts, tmp_path):
    transform = centred(golden_model)
    contract = dataclasses.replace(
        golden_oracle.contract,
        base_digest=golden_model.base_digest,
        transform="centred_by_layer",
        transform_digest=transform.digest,
    )
    oracle = Oracle(golden_model, golden_oracle.adapter, contract, transform=transform)
    folder = tmp_path / "saved"
    oracle.save_pretrained(folder)
    oracle.save_pretrained(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"], "something was left behind"
    loaded = Oracle.from_pretrained(folder, model=golden_model)
    try:
        assert loaded.contract == contract
        assert loaded.transform.digest == transform.digest
        torch.testing.assert_close(
            loaded.next_token_logits(QUESTION, acts), oracle.next_token_logits(QUESTION, acts)
        )
    finally:
        golden_model.delete_adapter(loaded.adapter)
    transform_file = next(p for p in folder.iterdir() if "transform" in p.name)
    transform_file.unlink()
    with pytest.raises(VerificationError, match="transform"):
        Oracle.from_pretrained(folder, model=golden_model)


def test_saving_never_replaces_something_else(golden_oracle, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError):
        golden_oracle.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_one(golden_model, golden_oracle, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    golden_oracle.save_pretrained(folder)
    before = (folder / CONTRACT_FILE).read_text()

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(golden_oracle.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        golden_oracle.save_pretrained(folder)
    assert (folder / CONTRACT_FILE).read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_a_save_that_cannot_take_its_place_gives_it_back(golden_oracle, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    golden_oracle.save_pretrained(folder)
    before = (folder / CONTRACT_FILE).read_text()
    rename = Path.rename

    def fail_once(path, target):
        if path.name == "new":
            raise OSError("in use")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="in use"):
        golden_oracle.save_pretrained(folder)
    assert (folder / CONTRACT_FILE).read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_inspecting_says_what_was_checked_and_what_is_missing(golden, golden_model):
    folder = golden.folder / "adapters" / "oracle"
    before = golden_model.adapter_names
    alone = inspect_checkpoint(folder)
    assert alone.ok
    assert {"base_digest", "training_data", "final_scale"} <= set(alone.missing)
    full = inspect_checkpoint(folder, model=golden_model)
    assert {"wiring", "weights"} <= {check.name for check in full.checks}
    assert golden_model.adapter_names == before
    json.dumps(full.to_dict())


def test_inspecting_a_contract_that_does_not_fit_reports(golden_model, checkpoint):
    edit_json(checkpoint / "ao_config.json", hook_onto_layer=99)
    report = inspect_checkpoint(checkpoint, model=golden_model)
    assert [check.name for check in report.checks if check.ok is False] == ["inject_layer"]


def test_inspecting_an_adapter_that_is_not_as_it_says_reports(golden_model, checkpoint):
    before = golden_model.adapter_names
    edit_json(checkpoint / "ao_config.json", lora_r=64)
    report = inspect_checkpoint(checkpoint, model=golden_model)
    assert [check.name for check in report.checks if check.ok is False] == ["lora_rank"]
    assert {"wiring", "weights"} <= {check.name for check in report.checks}
    assert golden_model.adapter_names == before


def test_inspecting_a_damaged_transform_reports(golden_model, checkpoint):
    (checkpoint / TRANSFORM_FILE).write_bytes(b"damaged")
    for model in (None, golden_model):
        report = inspect_checkpoint(checkpoint, model=model)
        assert [check.name for check in report.checks if check.ok is False] == ["transform"]


# Asking


def test_an_answer_carries_its_controls_and_origin(golden_oracle, acts):
    answer = golden_oracle.ask(QUESTION, acts, **SHORT)
    assert set(answer.controls) == {"no_activation", "zero", "random", "shuffled", "base"}
    assert answer.layers == (4,)
    assert answer.positions == acts.positions
    assert answer.tokens == acts.tokens
    assert answer.provenance["activations"]["adapter"] == "target"
    digest = golden_oracle.model.adapter_digest(golden_oracle.adapter)
    assert answer.provenance["oracle"]["adapter_digest"] == digest
    json.dumps(answer.to_dict())


def test_the_base_control_is_the_base_models_reading(golden_model, golden_oracle, acts):
    base = golden_model.activations(list(acts.context_ids), layers=4, positions=acts.positions)
    expected = golden_oracle.ask(QUESTION, base, controls=False, **SHORT)
    answer = golden_oracle.ask(QUESTION, acts, controls=["base"], **SHORT)
    assert answer.controls == {"base": expected.text}
    assert "base" not in golden_oracle.ask(QUESTION, base, **SHORT).controls


def test_controls_take_the_evidence_away(golden_oracle, golden_model, acts):
    # Whatever was read, these two say the same.
    other = golden_model.activations("say water", layers=4, adapter="target")[-1]
    one = golden_oracle.ask(QUESTION, acts[-1], **SHORT)
    two = golden_oracle.ask(QUESTION, other, **SHORT)
    for name in ("no_activation", "zero"):
        assert one.controls[name] == two.controls[name]
    assert (
        golden_oracle.ask(QUESTION, acts[-1], seed=1, **SHORT).controls["zero"]
        == (one.controls["zero"])
    )


def test_each_read_has_random_vectors_of_its_own(golden_oracle, golden_model):
    prompts = [f"say {word}" for word in ("what", "water", "secret", "is", "the", "word")]
    reads = [golden_model.activations(text, layers=4, adapter="target")[-1] for text in prompts]
    long = {"max_new_tokens": 12, "controls": ["random"]}
    said = [answer.controls["random"] for answer in golden_oracle.ask(QUESTION, reads, **long)]
    assert len(set(said)) > 1, "one draw stood for all"
    again = [golden_oracle.ask(QUESTION, acts, **long).controls["random"] for acts in reads]
    assert said == again, "a draw depends on what else is asked"
    other = golden_oracle.ask(QUESTION, reads, seed=1, **long)
    assert [answer.controls["random"] for answer in other] != said


def test_lists_are_paired_or_broadcast(golden_oracle, acts):
    questions = [QUESTION, "Why?"]
    for question, many, expected in (
        (questions, acts, 2),
        (QUESTION, [acts, acts[-1]], 2),
        (questions, [acts, acts[-1]], 2),
    ):
        answers = golden_oracle.ask(question, many, controls=False, **SHORT)
        assert len(answers) == expected
    alone = golden_oracle.ask("Why?", acts[-1], controls=False, **SHORT)
    assert answers[1].text == alone.text
    assert answers[1].log_prob == pytest.approx(alone.log_prob, abs=1e-3)
    for question, many in ((["a", "b", "c"], [acts, acts]), ([], acts), (QUESTION, [])):
        with pytest.raises(QuestionError):
            golden_oracle.ask(question, many)


def test_a_grid_is_each_layer_and_token_alone(golden_model, golden_oracle):
    acts = golden_model.activations("what is the secret", layers=[2, 6], adapter="target")
    grid = golden_oracle.ask_each(QUESTION, acts, controls=True, max_batch=7, **SHORT)
    assert len(repr(grid)) < 200
    assert grid.complete
    assert (grid.layers, grid.positions) == (acts.layers, acts.positions)
    for layer in acts.layers:
        for place, position in enumerate(acts.positions):
            alone = golden_oracle.ask(QUESTION, acts.layer(layer)[place], **SHORT)
            assert grid[layer, position].text == alone.text
            assert grid[layer, position].controls == alone.controls


def test_a_cell_of_a_grid_learns_nothing_of_the_others_where_vectors_are_pooled(lab):
    assert lab.oracle.transform.pools
    chat = [{"role": "user", "content": "Give me a hint."}]
    acts = lab.model.activations(chat, layers=[2, 6], adapter="bench")
    grid = lab.oracle.ask_each(QUESTION, acts[-6:], controls=["base"], **SHORT)
    for layer in acts.layers:
        for place in range(-6, 0):
            alone = lab.oracle.ask(QUESTION, acts.layer(layer)[place], controls=["base"], **SHORT)
            cell = grid[layer, acts.positions[place]]
            assert (cell.text, dict(cell.controls)) == (alone.text, dict(alone.controls))
            assert cell.log_prob == pytest.approx(alone.log_prob, abs=1e-3)


def test_a_grid_reports_each_cell_once_and_before_its_end(golden_model, golden_oracle):
    acts = golden_model.activations("what is the secret", layers=[2, 6], adapter="target")
    told, forwards = [], []
    handle = golden_model.hf_model.register_forward_pre_hook(
        lambda *_: forwards.append(1), with_kwargs=True
    )
    try:
        grid = golden_oracle.ask_each(
            QUESTION,
            acts,
            max_batch=3,
            on_answer=lambda answer: told.append((len(forwards), answer)),
            **SHORT,
        )
    finally:
        handle.remove()
    cells = [answer for _, answer in told]
    assert {(a.layers[0], a.positions[0]): a for a in cells} == grid.cells
    assert len(cells) == len(grid.cells)
    assert told[0][0] < len(forwards), "the first cell came only when all were done"


def test_a_grid_of_one_token_twice_is_complete(golden_oracle, acts):
    grid = golden_oracle.ask_each(QUESTION, acts[[3, 3]], controls=False, **SHORT)
    assert grid.complete
    assert len(grid.cells) == 1


def test_a_grid_keeps_what_is_done_when_it_is_cancelled(golden_model, golden_oracle):
    acts = golden_model.activations("what is the secret", layers=[2, 6])
    stop = threading.Event()
    steps = []

    def count(_module, _args, _kwargs):
        steps.append(1)
        if len(steps) == 9:
            stop.set()

    handle = golden_model.hf_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        grid = golden_oracle.ask_each(
            QUESTION, acts, controls=False, max_batch=1, stop=stop, **SHORT
        )
    finally:
        handle.remove()
    assert len(grid.cells) == 2, "two answers of four steps, then the third was stopped"
    assert not grid.complete


def test_an_interrupted_grid_keeps_what_is_done(golden_model, golden_oracle):
    acts = golden_model.activations("what is the secret", layers=[2, 6])
    steps = []

    def interrupt(_module, _args, _kwargs):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt

    handle = golden_model.hf_model.register_forward_pre_hook(interrupt, with_kwargs=True)
    try:
        grid = golden_oracle.ask_each(QUESTION, acts, controls=False, max_batch=1, **SHORT)
    finally:
        handle.remove()
    assert len(grid.cells) == 1
    assert golden_oracle.ask(QUESTION, acts[0].layer(2), controls=False, **SHORT).text == (
        grid[2, 0].text
    )


def test_several_layers_need_a_choice(golden_model, golden_oracle):
    acts = golden_model.activations("what is", layers=[2, 4])
    with pytest.raises(LayerError, match=r"acts\.layer\(2\).*ask_each"):
        golden_oracle.ask(QUESTION, acts)
    contract = dataclasses.replace(golden_oracle.contract, extra={"recommended_layer": 4})
    oracle = Oracle(golden_model, golden_oracle.adapter, contract)
    answer = oracle.ask(QUESTION, acts, controls=False, **SHORT)
    assert answer.layers == (4,)
    assert answer.text == oracle.ask(QUESTION, acts.layer(4), controls=False, **SHORT).text
    both = dataclasses.replace(golden_oracle.contract, layers_per_prompt="several")
    oracle = Oracle(golden_model, golden_oracle.adapter, both)
    assert oracle.ask(QUESTION, acts, controls=False, **SHORT).layers == (2, 4)


def test_what_is_recommended_holds_for_the_recommended_layers_alone(golden_model, golden_oracle):
    extra = {
        "recommended_layer": 4,
        "recommended_window": 1,
        "recommended_coefficient": 3.0,
        "recommended_temperature": 0.7,
    }
    contract = dataclasses.replace(golden_oracle.contract, extra=extra)
    oracle = Oracle(golden_model, golden_oracle.adapter, contract)
    acts = golden_model.activations("what is the secret", layers=[2, 4], adapter="target")
    here, there = oracle.ask(QUESTION, [acts.layer(4), acts.layer(2)], controls=False, **SHORT)
    assert (here.positions, there.positions) == (acts.positions[-1:], acts.positions)
    used = [
        [answer.provenance["oracle"][name] for name in ("coefficient", "do_sample", "temperature")]
        for answer in (here, there)
    ]
    assert used == [[3.0, True, 0.7], [1.0, False, None]]
    plain = golden_oracle.ask(QUESTION, acts.layer(2), controls=False, **SHORT)
    assert there.text == plain.text

    grid = oracle.ask_each(QUESTION, acts, controls=False, do_sample=False, **SHORT)
    for (layer, _), cell in grid.cells.items():
        assert cell.provenance["oracle"]["coefficient"] == (3.0 if layer == 4 else 1.0)

    words, two = ["water", "no"], [acts.layer(4), acts.layer(2)]
    stated = {"coefficient": 3.0, "window": 1}
    expected = [
        golden_oracle.choose(QUESTION, acts.layer(4), words, **stated),
        golden_oracle.choose(QUESTION, acts.layer(2), words),
    ]
    for choice, other in zip(oracle.choose(QUESTION, two, words), expected, strict=True):
        assert choice.log_probs == pytest.approx(other.log_probs, abs=1e-3)
    for layer, options in ((4, stated), (2, {})):
        one = acts.layer(layer)
        assert oracle.score(QUESTION, one, "no") == pytest.approx(
            golden_oracle.score(QUESTION, one, "no", **options), abs=1e-3
        )


def test_what_is_recommended_without_a_layer_holds_for_all(golden_model, golden_oracle):
    contract = dataclasses.replace(golden_oracle.contract, extra={"recommended_coefficient": 3.0})
    oracle = Oracle(golden_model, golden_oracle.adapter, contract)
    acts = golden_model.activations("what is", layers=2)
    answer = oracle.ask(QUESTION, acts, controls=False, **SHORT)
    assert answer.provenance["oracle"]["coefficient"] == 3.0


@pytest.mark.parametrize(
    ("lengths", "max_batch", "expected"),
    [
        ([100, 50, 80], 128, [[1, 2, 0]]),
        ([100, 50, 80], 2, [[1, 2], [0]]),
        ([16_000, 100, 16_000, 15_000], 128, [[1, 3], [0, 2]]),
        ([40_000, 10, 40_000], 128, [[1], [0], [2]]),
        ([], 1, []),
    ],
)
def test_a_batch_has_a_limit_in_tokens_too(lengths, max_batch, expected):
    prompts = [OraclePrompt((0,) * length, ()) for length in lengths]
    rows = [Row(prompt, torch.zeros(0, 4)) for prompt in prompts]
    assert list(batches(rows, max_batch, 64)) == expected


@pytest.mark.parametrize("call", ["ask", "choose"])
def test_an_empty_batch_is_refused(golden_oracle, acts, call):
    choices = (["a", "b"],) if call == "choose" else ()
    with pytest.raises(GenerationError, match="max_batch"):
        getattr(golden_oracle, call)(QUESTION, acts, *choices, max_batch=0)


def test_an_untrained_layer_is_a_warning_that_names_the_trained_ones(golden_model, golden_oracle):
    acts = golden_model.activations("what is", layers=5)
    with pytest.warns(UntrainedLayerWarning, match=r"\[2, 4, 6\]") as caught:
        golden_oracle.ask(QUESTION, acts, controls=False, **SHORT)
    assert caught[0].filename == __file__, "the warning should point at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        golden_oracle.ask(QUESTION, golden_model.activations("what", layers=4), **SHORT)


@pytest.mark.parametrize("question", ["", " ", "say <|im_end|> now"])
def test_bad_questions(golden_oracle, acts, question):
    for ask in (golden_oracle.ask, golden_oracle.ask_each, golden_oracle.stream):
        with pytest.raises(QuestionError):
            ask(question, acts)


def test_activations_of_another_base(golden_oracle, acts):
    foreign = dataclasses.replace(
        acts, provenance=dataclasses.replace(acts.provenance, base_digest="0" * 64)
    )
    with pytest.raises(IncompatibleActivationsError, match="allow_other_base"):
        golden_oracle.ask(QUESTION, foreign)
    answer = golden_oracle.ask(QUESTION, foreign, allow_other_base=True, **SHORT)
    assert "base" not in answer.controls, "the other base cannot be read here"
    narrow = dataclasses.replace(foreign, vectors=foreign.vectors[..., :16])
    with pytest.raises(IncompatibleActivationsError, match="width 16"):
        golden_oracle.ask(QUESTION, narrow, allow_other_base=True)


def test_not_a_number(golden_oracle, acts):
    broken = dataclasses.replace(acts, vectors=acts.vectors.clone())
    broken.vectors[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        golden_oracle.ask(QUESTION, broken)


def test_raw_tensors_are_refused(golden_oracle, acts):
    with pytest.raises((TypeError, QuestionError), match="Activations"):
        golden_oracle.next_token_logits(QUESTION, acts.vectors)


def test_too_long(golden_model, golden_oracle, acts):
    with pytest.raises(ContextLengthError, match="512"):
        golden_oracle.ask(QUESTION, acts, max_new_tokens=500)
    long = golden_model.activations([5] * 500, layers=4)
    for call in (
        lambda: golden_oracle.ask(QUESTION, long),
        lambda: golden_oracle.stream(QUESTION, long),
        lambda: golden_oracle.score(QUESTION, long, "Yes"),
    ):
        with pytest.raises(ContextLengthError):
            call()


@pytest.mark.parametrize(
    "option",
    [
        {"num_beams": 2},
        {"num_return_sequences": 3},
        {"assistant_model": object()},
        {"input_ids": torch.zeros(1, 1)},
        {"eos_token_id": 3},
        {"generation_config": object()},
    ],
)
def test_options_that_would_inject_in_wrong_places(golden_oracle, acts, option):
    for call in (golden_oracle.ask, golden_oracle.ask_each, golden_oracle.stream):
        with pytest.raises(GenerationError, match=next(iter(option))):
            call(QUESTION, acts, **option)
    golden_oracle.ask(QUESTION, acts, num_beams=1, controls=False, **SHORT)


def test_a_tokenizer_that_does_not_suit(golden, golden_model, golden_oracle, acts):
    plain = PreTrainedTokenizerFast(
        tokenizer_object=golden.tokenizer.backend_tokenizer, eos_token="<|im_end|>"
    )
    oracle = Oracle(golden_model, golden_oracle.adapter, golden_oracle.contract, tokenizer=plain)
    with pytest.raises(ChatTemplateError):
        oracle.ask(QUESTION, acts)
    contract = dataclasses.replace(golden_oracle.contract, placeholder=" ??")
    with pytest.raises(PlaceholderError):
        Oracle(golden_model, golden_oracle.adapter, contract).ask(QUESTION, acts)


def test_sampling_uses_torchs_generator_and_its_options(golden_oracle, acts):
    def sample(seed):
        torch.manual_seed(seed)
        return golden_oracle.ask(
            QUESTION, acts, controls=False, do_sample=True, temperature=2.0, max_new_tokens=8
        ).text

    assert sample(0) == sample(0)
    assert len({sample(seed) for seed in range(4)}) > 1
    many = golden_oracle.ask([QUESTION] * 6, acts, do_sample=True, temperature=2.0, **SHORT)
    assert len({answer.text for answer in many}) > 1, "one sample stood for all"


@pytest.mark.parametrize(
    "config",
    [{"repetition_penalty": 50.0}, {"num_beams": 3}, {"suppress_tokens": list(range(300))}],
)
def test_the_models_generation_config_does_not_steer_the_oracle(
    golden_model, golden_oracle, acts, monkeypatch, config
):
    expected = golden_oracle.ask(QUESTION, acts, **SHORT)
    steering = GenerationConfig(**config)
    monkeypatch.setattr(golden_model.hf_model, "generation_config", steering)
    answer = golden_oracle.ask(QUESTION, acts, **SHORT)
    assert (answer.text, dict(answer.controls)) == (expected.text, dict(expected.controls))
    assert answer.log_prob == pytest.approx(expected.log_prob, abs=1e-4)
    assert golden_model.hf_model.generation_config is steering


def test_samples_are_drawn_from_all_tokens_unless_stated(
    golden_model, golden_oracle, acts, monkeypatch
):
    def sampled(**options):
        torch.manual_seed(0)
        options |= {"num_samples": 8, "temperature": 3.0, "controls": False}
        return golden_oracle.ask(
            QUESTION, acts, confidence="mode_frequency", **options, **SHORT
        ).confidence

    free, cut = sampled(), sampled(top_k=1)
    assert (free.settings["top_k"], free.settings["top_p"]) == (0, 1.0)
    assert cut.settings["top_k"] == 1
    assert free.value < cut.value == 1
    monkeypatch.setattr(golden_model.hf_model, "generation_config", GenerationConfig(top_k=1))
    assert sampled() == free


@pytest.mark.parametrize("options", [{"temperature": 0, "do_sample": True}, {"temperature": -1.0}])
def test_temperatures_that_cannot_be_sampled_with(golden_oracle, acts, options):
    for call in (golden_oracle.ask, golden_oracle.ask_each, golden_oracle.stream):
        with pytest.raises(GenerationError, match="temperature"):
            call(QUESTION, acts, **options)


# Choosing and scoring


def test_a_choice_is_the_softmax_of_scores(golden_oracle, acts):
    choice = golden_oracle.choose(QUESTION, acts, ["water", "a long answer", "no"], max_batch=2)
    scores = {c: golden_oracle.score(QUESTION, acts, c) for c in choice.log_probs}
    assert choice.log_probs == pytest.approx(scores, abs=1e-4)
    expected = torch.tensor(list(scores.values())).softmax(0).tolist()
    assert list(choice.probabilities.values()) == pytest.approx(expected, abs=1e-4)
    assert choice.text == max(scores, key=scores.get)


@pytest.mark.parametrize("choices", [[], ["one"], ["same", "same"], "yes"])
def test_bad_choices(golden_oracle, acts, choices):
    with pytest.raises(GenerationError):
        golden_oracle.choose(QUESTION, acts, choices)


def test_a_candidate_that_says_nothing_is_refused(golden_oracle, acts):
    for blank in ("", "  "):
        with pytest.raises(QuestionError, match="empty"):
            golden_oracle.choose(QUESTION, acts, ["water", blank])


# The transform


def test_vectors_are_centred_once_and_differences_not_at_all(golden_model, golden_oracle):
    transform = centred(golden_model)
    contract = dataclasses.replace(golden_oracle.contract, transform="centred_by_layer")
    oracle = Oracle(golden_model, golden_oracle.adapter, contract, transform=transform)
    chat = [{"role": "user", "content": "hint"}]
    target = golden_model.activations(chat, layers=4, adapter="target")[-2:]
    base = golden_model.activations(chat, layers=4)[-2:]
    by_hand = dataclasses.replace(target, vectors=target.vectors - transform.mean[1])
    torch.testing.assert_close(
        oracle.next_token_logits(QUESTION, target),
        golden_oracle.next_token_logits(QUESTION, by_hand),
    )
    torch.testing.assert_close(
        oracle.next_token_logits(QUESTION, target - base),
        golden_oracle.next_token_logits(QUESTION, target - base),
    )
    assert "base" not in oracle.ask(QUESTION, target - base, **SHORT).controls
    other = golden_model.activations(chat, layers=5)
    with pytest.raises(LayerError, match="statistics"):
        oracle.ask(QUESTION, other)


# Streaming, state and threads


def test_closing_a_stream_stops_generation(golden_model, golden_oracle, acts):
    steps = []
    handle = golden_model.hf_model.register_forward_pre_hook(
        lambda *_: steps.append(1), with_kwargs=True
    )
    try:
        pieces = golden_oracle.stream("Tell me.", acts, max_new_tokens=300)
        next(pieces)
        pieces.close()
    finally:
        handle.remove()
    assert len(steps) < 300
    assert golden_model.lock.acquire(timeout=5), "the lock was left taken"
    golden_model.lock.release()


def test_a_stream_that_fails_says_so(golden_model, golden_oracle, acts):
    def fail(*_):
        raise RuntimeError("broken")

    handle = golden_model.hf_model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            list(golden_oracle.stream(QUESTION, acts))
    finally:
        handle.remove()


def test_asking_puts_back_adapter_flags_and_modes(golden_model, golden_oracle, acts):
    ids = torch.tensor([acts.context_ids])
    golden_model.hf_model.train()
    flags = {n: p.requires_grad for n, p in golden_model.hf_model.named_parameters()}
    try:
        with golden_model.using("target"), torch.no_grad():
            before = golden_model.hf_model(ids).logits
            golden_oracle.ask(QUESTION, acts, **SHORT)
            assert torch.equal(golden_model.hf_model(ids).logits, before)
        assert golden_model.hf_model.training
        after = {n: p.requires_grad for n, p in golden_model.hf_model.named_parameters()}
        assert after == flags
    finally:
        golden_model.hf_model.eval()


def test_two_threads_get_their_own_answers(golden_model, golden_oracle, acts):
    many = [acts, acts[-1], acts[:2], acts[1]]
    expected = [golden_oracle.ask(QUESTION, one, **SHORT).text for one in many]
    found = {}

    def work(index):
        for _ in range(2):
            found[index] = golden_oracle.ask(QUESTION, many[index], **SHORT).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(many))] == expected


def test_the_base_itself_can_be_asked(golden_model, golden_oracle, acts):
    untrained = Oracle(golden_model, None, golden_oracle.contract)
    logits = untrained.next_token_logits(QUESTION, acts)
    assert not torch.allclose(logits, golden_oracle.next_token_logits(QUESTION, acts), atol=1e-3)
    with pytest.raises(ContractError, match="no adapter"):
        untrained.save_pretrained("nowhere")


def test_an_adapter_trained_in_memory_can_be_asked_and_saved(golden, tmp_path):
    model = TracedModel.from_pretrained(golden.folder / "model", device="cpu")
    config = LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model.add_adapter("mine", config)
    acts = model.activations("what is", layers=4)
    oracle = Oracle(model, "mine", golden.contract)
    text = oracle.ask(QUESTION, acts, controls=False, **SHORT).text
    oracle.save_pretrained(tmp_path / "mine")
    fresh = TracedModel.from_pretrained(golden.folder / "model", device="cpu")
    loaded = Oracle.from_pretrained(tmp_path / "mine", model=fresh)
    assert loaded.adapter == "oracle"
    assert loaded.ask(QUESTION, acts, controls=False, **SHORT).text == text
