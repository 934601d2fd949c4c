"""The command `aotoolkit`: what the library does, from a shell.

Reports go to stdout (`--json`: one JSON object), everything else to stderr. Input that cannot be
used ends with a message and exit code 2, as wrong options do; a traceback is a bug of ours. Torch
and the models are imported inside the commands, so that `--help` and a typing error answer at once.
"""

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

import aotoolkit
from aotoolkit.errors import AOToolkitError, SweepError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aotoolkit.data import Example, MadeLatentQA
    from aotoolkit.evals import EvalResult, Suite
    from aotoolkit.evals.scaling import ScalingResult
    from aotoolkit.evals.sweep import SweepResult
    from aotoolkit.nano import Nano
    from aotoolkit.oracle import Answer, Inspection, Oracle, OracleContract
    from aotoolkit.oracle.confidence import AnswerConfidenceKind
    from aotoolkit.oracle.contract import Window
    from aotoolkit.tracing import TracedModel
    from aotoolkit.training.recipe import Recipe


class _ReportsErrors(TyperGroup):
    """Says in one line what is wrong with the input, with the exit code of a wrong option."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (AOToolkitError, OSError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_ReportsErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
nano_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(nano_app, name="nano", help="The models that ship with the package.")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Training data: of a recipe, or made for one.")

AsJson = Annotated[bool, typer.Option("--json", help="Report as one JSON object.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch. [default: all cores]")
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a .yaml file.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the run. [default: the recipe's, or runs/ and its name]"),
]


# Prompts an organism, or items of a kind, of `eval --quick`.
_QUICK_ITEMS = 5
_REPLY_TOKENS = 48
_EXAMPLE_FILES = (".json", ".jsonl")
_RECIPE_FILES = (".yaml", ".yml")


class Match(StrEnum):
    """When a reply counts as right: it is the answer, or the answer's words stand in it."""

    EXACT = "exact"
    WORD = "word"


class SuiteName(StrEnum):
    """What `eval` runs: the embedded world, or a model of one's own."""

    NANO = "nano"
    SECRET_KEEPING = "secret-keeping"
    AOBENCH = "aobench"
    LATENTQA = "latentqa"
    ALL = "all"


# The options of `eval` that a suite of a model of one's own uses, beside oracles and layer.
_USED = {
    SuiteName.SECRET_KEEPING: ("--model", "--adapter", "--organisms", "--prompts"),
    SuiteName.AOBENCH: ("--model", "--prompts", "--latentqa", "--relation"),
    SuiteName.LATENTQA: ("--model", "--latentqa", "--relation"),
}


class AnswerConfidence(StrEnum):
    """How sure an oracle is of what it says; as `aotoolkit.oracle.confidence` has them."""

    LOG_PROBABILITY = "log_probability"
    MODE_FREQUENCY = "mode_frequency"
    AGREEMENT = "agreement"


class Dialect(StrEnum):
    """How prompts are written and vectors injected; as `OracleContract.dialect`."""

    ACTIVATION_ORACLE = "activation_oracle"
    LATENTQA = "latentqa"


class SteeringMethod(StrEnum):
    """Where the gradients of an oracle go."""

    SINGLE_LAYER = "single_layer"
    LAYERWISE = "layerwise"
    VECTOR = "vector"


class DialogueKind(StrEnum):
    """A file of LatentQA data; as `aotoolkit.data.latentqa` has them."""

    CONTROL = "control"
    STIMULUS = "stimulus"
    STIMULUS_COMPLETION = "stimulus_completion"
    SYSTEM = "system"
    SYSTEM_COMPLETION = "system_completion"


class Part(StrEnum):
    """A part of the embedded models that `nano build` makes; later parts need the earlier ones."""

    BASE = "base"
    ORGANISMS = "organisms"
    ORACLE = "oracle"
    DECODER = "decoder"
    VARIANTS = "variants"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    """Ask a language model's activations questions."""
    if version:
        typer.echo(f"aotoolkit {aotoolkit.__version__}")
        raise typer.Exit


@app.command()
def demo(
    changed: Annotated[
        bool,
        typer.Option(
            "--changed",
            help="Also read what fine-tuning changed amplified, and less what the organisms have "
            "in common.",
        ),
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Watch an oracle name the words that fine-tuned models hide, with the controls beside it."""
    _use_threads(threads)
    from aotoolkit import nano
    from aotoolkit.nano.demo import run

    result = run(nano.load(), changed=changed, progress=not as_json)
    if as_json:
        _print_json(result.to_dict())
    else:
        result.render(Console())


@app.command()
def ask(
    *,
    question: Annotated[str, typer.Option(help="What to ask about the activations.")],
    prompt: Annotated[
        str,
        typer.Option(help="What the target model reads: a user turn, or a JSON list of messages."),
    ],
    organism: Annotated[
        str | None, typer.Option(help="Read this organism of the embedded models.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Target model, a folder or a Hub id. [default: embedded]")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME=PATH", help="Read the target with this adapter (PEFT)."),
    ] = None,
    oracle: Annotated[
        str | None, typer.Option(help="Oracle, a folder or a Hub id. [default: embedded]")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Block (12) or fraction of depth (0.5); may be repeated. "
            "[default: what the oracle recommends, or was trained on]"
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Tokens to read: 3,4,-1 or 3:10, the end left out. [default: those that the "
            "oracle recommends, or all]"
        ),
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Read the last N tokens.")] = None,
    amplify: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="TIMES",
            help="Take what the adapter changes so many times, such as 1.5; its text stays.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Read the prompt as it is, without a chat template.")
    ] = False,
    reply: Annotated[
        bool, typer.Option("--reply", help="Let the target reply first, and read its reply too.")
    ] = False,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='For the target\'s chat template, such as {"enable_thinking": false}.',
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Ask the same without the evidence, to compare.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Ask an oracle one question about what a model represents while it reads a prompt."""
    _refuse_together({"--organism": organism, "--model": model})
    _refuse_together({"--organism": organism, "--adapter": adapter})
    _refuse_together({"--positions": positions, "--last": last})
    _refuse_together({"--plain": plain or None, "--reply": reply or None})
    _refuse_together({"--plain": plain or None, "--chat-template-kwargs": chat_template_kwargs})
    if amplify is not None and organism is None and adapter is None:
        raise typer.BadParameter(
            "needs a fine-tuned model; give --organism or --adapter", param_hint="--amplify"
        )
    if model is not None and oracle is None:
        raise typer.BadParameter("an oracle is needed with --model", param_hint="--oracle")
    chat_or_text = prompt if plain else _messages(prompt)
    chosen_layers = [_layer(text) for text in layer or []]
    chosen = slice(-last, None) if last else _positions(positions)
    named = None if adapter is None else _named_path(adapter)
    template_kwargs = _template_kwargs(chat_template_kwargs)
    from aotoolkit.tracing.encoding import ends_with_reply

    target, teller = _target_and_oracle(model, oracle)
    target.chat_template_kwargs = template_kwargs
    if organism is not None:
        read_with = organism
    elif named is not None:
        read_with, path = named
        target.load_adapter(read_with, path)
    else:
        read_with = None
    if reply:
        said = target.generate(chat_or_text, adapter=read_with)
        chat_or_text = [*chat_or_text, {"role": "assistant", "content": said}]
    options: dict[str, Any] = {
        "layers": chosen_layers or _layers_asked_by_default(teller.contract),
        "positions": chosen,
        # After a reply that is there, another one's header would be read for nothing.
        "add_generation_prompt": not ends_with_reply(chat_or_text),
    }
    activations = target.activations(chat_or_text, adapter=read_with, **options)
    if amplify is not None:
        base = target.activations(chat_or_text, **options)
        activations = activations.amplified(base, by=amplify)
    stated = None if chosen is None else "all"
    answer = teller.ask(question, activations, window=stated, controls=controls)
    if as_json:
        _print_json(answer.to_dict())
    else:
        _print_answer(answer)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="An oracle: a folder or a Hub id.")],
    model: Annotated[
        str | None,
        typer.Option(help="Its base, a folder or a Hub id: verifies prompt, weights and wiring."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print how a checkpoint must be used, what was verified and what is missing.

    Exit code 1 where a check failed.
    """
    from aotoolkit.oracle import inspect_checkpoint
    from aotoolkit.tracing import TracedModel

    base = None if model is None else TracedModel.from_pretrained(model)
    inspection = inspect_checkpoint(path, model=base)
    if as_json:
        _print_json(inspection.to_dict())
    else:
        _print_inspection(inspection, verified_with=model)
    if not inspection.ok:
        raise typer.Exit(1)


@app.command()
def train(
    recipe: RecipePath,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how long it takes, and how much memory.")
    ] = False,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Train an oracle from a recipe; the same command goes on with a run that was stopped.

    Several processes: accelerate launch -m aotoolkit train RECIPE.
    """
    _use_threads(threads)
    from aotoolkit.training.recipe import is_main_process, load_recipe

    loaded, speaks = load_recipe(recipe), is_main_process()
    progress = speaks and not as_json
    if dry_run:
        estimate = loaded.estimate(output_dir=output_dir, progress=progress)
        if speaks and as_json:
            _print_json(dataclasses.asdict(estimate))
        elif speaks:
            estimate.render(Console())
        return
    result = loaded.run(output_dir=output_dir, progress=progress)
    if not speaks:
        return
    figures = None if result.metrics is None else dataclasses.asdict(result.metrics)
    if as_json:
        report = {"oracle": str(result.folder), "best_step": result.best_step, "metrics": figures}
        _print_json(report)
    else:
        typer.echo(f"The oracle of step {result.best_step:,} is in {result.folder}.")


@app.command()
def steer(
    *,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Measure steering on the embedded models, with its controls."),
    ] = False,
    things: Annotated[
        int | None,
        typer.Option(min=1, help="With --demo: how many words are steered to. [default: 2]"),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="JSON list of [question, wanted answer], or an object of them."),
    ] = None,
    sentence: Annotated[
        str | None,
        typer.Option(help="Instead of --pairs: a system prompt that the target shall not need."),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="With --sentence: what the oracle is asked; may be repeated."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What the target reads: a user turn, or a JSON list of messages; may be repeated."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Target model, a folder or a Hub id. [default: embedded]")
    ] = None,
    oracle: Annotated[
        str | None, typer.Option(help="Oracle, a folder or a Hub id. [default: embedded]")
    ] = None,
    method: Annotated[
        SteeringMethod, typer.Option(help="Where the gradients go.")
    ] = SteeringMethod.SINGLE_LAYER,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Block (12) or fraction of depth (0.5); may be repeated. "
            "[default: what the oracle recommends, or was trained on]"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps. [default: 100; demo: 30]")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. [default: 1e-4; of vectors 0.1]")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Random offset of the vectors in each step, as a share of their length. "
            "[default: 0; demo: 2]",
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Scales what is saved and shown. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and draws. [default: 0]")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="With --demo: of the runs for each word, such as 0,1. [default: --seed]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the adapter (PEFT) or the vectors.")
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Change a model by an oracle's gradients until the oracle answers in the wanted way."""
    _use_threads(threads)
    if demo:
        of_ones_own = {
            "--pairs": pairs,
            "--sentence": sentence,
            "--question": question,
            "--prompt": prompt,
            "--model": model,
            "--oracle": oracle,
            "--lr": lr,
            "--strength": strength,
            "--out": out,
        }
        for option, value in of_ones_own.items():
            _refuse_together({"--demo": demo, option: value})
        _refuse_together({"--seed": seed, "--seeds": seeds})
        if len(layer or ()) > 1:
            raise typer.BadParameter("--demo takes one", param_hint="--layer")
        if layer and method == SteeringMethod.LAYERWISE:
            raise typer.BadParameter(
                "the method layerwise reads all that the oracle was trained on; leave it out",
                param_hint="--layer",
            )
        each = (seed or 0,) if seeds is None else _whole_numbers(seeds, "--seeds")
        _steering_demo(things or 2, method, layer, steps, noise, each, as_json=as_json)
        return
    _refuse_together({"--pairs": pairs, "--sentence": sentence})
    if seeds is not None:
        raise typer.BadParameter("is for --demo; give --seed", param_hint="--seeds")
    if things is not None:
        raise typer.BadParameter("is for --demo", param_hint="--things")
    _refuse_together({"--question": question, "--pairs": pairs})
    strength = 1.0 if strength is None else strength
    if not math.isfinite(strength):
        raise typer.BadParameter(f"{strength} is no finite number", param_hint="--strength")
    if pairs is None and sentence is None:
        raise typer.BadParameter(
            "what the target is steered to is missing; give --pairs or --sentence, or --demo",
            param_hint="--pairs",
        )
    if not prompt:
        raise typer.BadParameter("at least one is needed", param_hint="--prompt")
    if model is not None and oracle is None:
        raise typer.BadParameter("an oracle is needed with --model", param_hint="--oracle")
    behaviour: Any = sentence if pairs is None else _pairs(pairs)
    chosen_layers = [_layer(text) for text in layer or []] or None
    from aotoolkit import steering
    from aotoolkit.steering.result import refuse_other_files

    if out is not None:
        refuse_other_files(out)
    target, teller = _target_and_oracle(model, oracle)
    options: dict[str, Any] = {"questions": question} if question else {}
    chats = [_messages(text) for text in prompt]
    if pairs is not None and not as_json:
        needed = steering.estimate(
            target, teller, behaviour, chats, method=method.value, layers=chosen_layers
        )
        typer.echo(f"Memory: {needed}", err=True)
    result = steering.steer(
        target,
        teller,
        behaviour,
        chats,
        method=method.value,
        layers=chosen_layers,
        steps=steps or 100,
        lr=lr,
        max_new_tokens=_REPLY_TOKENS,
        noise=noise or 0.0,
        seed=seed or 0,
        progress=not as_json,
        **options,
    )
    report = result.to_dict()
    if strength != 1.0:
        asked = list(result.prompts)
        said = result.generate(asked, scale=strength, max_new_tokens=_REPLY_TOKENS) if asked else []
        for reply, text in zip(report["replies"], said, strict=True):
            reply["after"] = text
    report["strength"] = strength
    report["folder"] = None if out is None else str(result.save(out, scale=strength))
    if as_json:
        _print_json(report)
        return
    first, best = result.losses[0].loss, min(point.loss for point in result.losses)
    typer.echo(f"Loss of the oracle: {first:.3f}, after step {result.best_step}: {best:.3f}.")
    for reply in report["replies"]:
        typer.echo(_printable(str(reply["prompt"][-1]["content"])))
        typer.echo(f"  before: {_printable(reply['before'])}")
        typer.echo(f"  after:  {_printable(reply['after'])}")
    if out is not None:
        typer.echo(f"Saved in {out}.")


@app.command()
def sweep(
    oracle: Annotated[str, typer.Argument(help="An oracle: a folder or a Hub id.")],
    *,
    data: Annotated[
        list[Path],
        typer.Option(
            help="Examples that it was not trained on: a recipe (.yaml), of which those held out "
            "are taken, or a .json or .jsonl file of examples; may be repeated."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Its base, a folder or a Hub id. [default: the contract's]")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Block (12), fraction of depth (0.5) or several of them (12,18) together; may be "
            "repeated. [default: those that the oracle was trained on]"
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(help="Read the last N tokens, or all; may be repeated. [default: 1, 10, all]"),
    ] = None,
    coefficient: Annotated[
        list[float] | None,
        typer.Option(help="Of the injection; may be repeated. [default: that of training]"),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="0 is greedy; may be repeated. [default: 0]")
    ] = None,
    match: Annotated[Match, typer.Option(help="What decides which setting is best.")] = Match.EXACT,
    source: Annotated[
        list[str] | None, typer.Option(help="Only examples of this source; may be repeated.")
    ] = None,
    max_examples: Annotated[
        int, typer.Option(min=1, help="About as many, in whole groups drawn at random.")
    ] = 500,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for figures; a sweep goes on there. [default: ORACLE/sweep]"),
    ] = None,
    write: Annotated[
        bool, typer.Option(help="Write the best setting into the oracle's contract.")
    ] = True,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Find the layer, positions, coefficient and temperature that an oracle answers best with.

    The best becomes what a local oracle is asked with where nothing is stated. Where its gain over
    no activations is not sure, the oracle is left as it was, and the exit code is 1.
    """
    folder = Path(oracle).expanduser()
    if out is None and not folder.is_dir():
        raise typer.BadParameter(
            f"{oracle} is no folder here, so say where the figures go", param_hint="--out"
        )
    layers = [[_layer(part) for part in text.split(",")] for text in layer or []]
    windows = [_window(text) for text in window or []]
    _refuse_other_files(data)
    _use_threads(threads)
    from aotoolkit.evals.sweep import apply_recommended
    from aotoolkit.evals.sweep import sweep as run_sweep
    from aotoolkit.oracle import Oracle
    from aotoolkit.tracing import TracedModel
    from aotoolkit.training.recipe import load_recipe

    recipes = {path: load_recipe(path) for path in data if path.suffix not in _EXAMPLE_FILES}
    base = None if model is None else TracedModel.from_pretrained(model)
    teller = Oracle.from_pretrained(oracle, model=base)
    target = out or folder / "sweep"
    given: dict[str, Any] = {
        "layers": layers,
        "windows": windows,
        "coefficients": coefficient,
        "temperatures": temperature,
        "sources": source,
    }
    result = run_sweep(
        teller,
        [
            example
            for path in data
            for example in _held_out(
                path, recipes.get(path), teller, folder=folder, progress=not as_json
            )
        ],
        **{name: value for name, value in given.items() if value},
        match=match.value,
        max_examples=max_examples,
        folder=target,
        progress=not as_json,
    )
    _save_figure("sweep_heatmap", result, target / "sweep.html")
    if as_json:
        _print_json({"folder": str(target), **result.to_dict()})
    else:
        _print_sweep(result)
    if write and folder.is_dir():
        try:
            apply_recommended(folder, result)
        except SweepError as error:
            typer.echo(f"{folder} is left as it was. {error}", err=True)
            raise typer.Exit(1) from error
        if not as_json:
            typer.echo(f"{folder} is now asked with {result.best.setting}, where none is stated.")


@app.command("eval")
def evaluate(
    *,
    suite: Annotated[
        SuiteName,
        typer.Option(
            help="nano: the embedded models; secret-keeping and aobench: a model of your own; "
            "latentqa: either; all: each of these that the other options suffice for."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Target model, a folder or a Hub id. [default: the embedded models]"),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="An adapter of it (PEFT), for secret-keeping; may be repeated.",
        ),
    ] = None,
    organisms: Annotated[
        Path | None,
        typer.Option(
            help="A YAML or JSON file that says which adapter holds what secret, for "
            "secret-keeping."
        ),
    ] = None,
    oracle: Annotated[
        list[str] | None,
        typer.Option(
            help="Oracle, a folder or a Hub id; may be repeated. Controls are those of the first. "
            "[default: those that ship; aotoolkit/nano and aotoolkit/nano-latentqa name them]"
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the published prompt files: taboo, gender, ssc and personaqa for "
            "secret-keeping, classification for aobench."
        ),
    ] = None,
    latentqa: Annotated[
        Path | None,
        typer.Option(help="Folder of the published LatentQA files, for aobench and latentqa."),
    ] = None,
    relation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=QUESTION",
            help="A tab-separated file of a relation and what is asked of its subjects, for "
            "aobench and latentqa; may be repeated.",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Block (12) or fraction of depth (0.5) that is read; may be repeated. [default: "
            "what the first oracle recommends, or was trained on]"
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(
            help="With nano: the folder of nano build --part variants, all of whose oracles are "
            "compared; with its organisms, or those that ship where it has none."
        ),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Run the baselines too.")] = True,
    seeds: Annotated[
        str | None,
        typer.Option(help="Only oracles of these training seeds: 0,1,2. [default: all there are]"),
    ] = None,
    confidence: Annotated[
        AnswerConfidence | None,
        typer.Option(
            help="How sure the oracles are of what they say, beside their forced choices: the "
            "share of 20 sampled answers, or of the positions asked alone, that agree. [default: "
            "the answer's probability, where there are no choices]"
        ),
    ] = None,
    precision: Annotated[
        float,
        typer.Option(help="Share of right answers that abstaining at low confidence is to reach."),
    ] = 0.8,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small part of each task, to see that it works.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.jsonl, table.json and report.html (of several suites, a "
            "folder each); a run that was stopped goes on there. [default: nothing is kept]"
        ),
    ] = None,
    as_json: AsJson = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of torch. [default: all cores; one for nano]"),
    ] = None,
) -> None:
    """Ask oracles, their controls, baselines and skylines the same, and print an honest table.

    Exit code 1 where a leak was found: then nothing was answered. Several processes: accelerate
    launch -m aotoolkit eval ...
    """
    given = _Given(
        model=model,
        adapter=_each_once([_named_path(text) for text in adapter or []], "--adapter"),
        organisms=organisms,
        oracle=oracle or [],
        prompts=prompts,
        latentqa=latentqa,
        relation=_each_once([_file_and_question(text) for text in relation or []], "--relation"),
        layer=[_layer(text) for text in layer or []],
    )
    names = _applicable(suite, given)
    if variants is not None and suite != SuiteName.NANO:
        raise typer.BadParameter("is of --suite nano", param_hint="--variants")
    for option, value in {"--oracle": oracle, "--layer": layer}.items():
        _refuse_together({"--variants": variants, option: value})
    chosen_seeds = None if seeds is None else _whole_numbers(seeds, "--seeds")
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file, not a folder", param_hint="--out")
    if not 0 < precision <= 1:
        raise typer.BadParameter(
            f"{precision} is no share above 0, up to 1", param_hint="--precision"
        )
    # Threads that wait for each other cost the embedded models more than they save, and many times
    # as much on a machine with other work.
    _use_threads(1 if threads is None and given.model is None else threads)
    from aotoolkit.errors import EvalLeakError
    from aotoolkit.evals import run_suite
    from aotoolkit.training.recipe import is_main_process

    speaks, results = is_main_process(), []
    if variants is not None:
        target, make, oracles = *_variants(variants), {}
    elif given.model is None:
        lab, oracles = _embedded(names, given)
        target, make = lab.model, partial(_embedded_suite, lab)
    else:
        target, oracles = _own_target(given.model, given)
        make = partial(_own_suite, target)
    # All are made before one is run: what the last cannot use costs nothing then.
    suites = [
        make(
            name,
            given,
            oracles,
            baselines=baselines,
            confidence=None if confidence is None else confidence.value,
            quick=quick,
        )
        for name in names
    ]
    for name, made in zip(names, suites, strict=True):
        folder = out / name if out is not None and len(names) > 1 else out
        try:
            result = run_suite(
                made,
                target,
                out=folder,
                seeds=chosen_seeds,
                precision=precision,
                progress=speaks and not as_json,
            )
        except EvalLeakError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error
        results.append(result)
        if folder is not None and speaks:
            _save_report(result, folder, target)
        if speaks and not as_json:
            result.table.render(Console())
            where = "" if result.folder is None else f" The results are in {result.folder}."
            typer.echo(f"{result.table.suite}: {result.seconds:,.0f} s.{where}")
    if speaks and as_json:
        _print_json(_eval_report(suite, results))


@app.command()
def scaling(
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for bases, oracles, scaling.json and scaling.html; a run that "
            "was stopped goes on there, and more sizes, bases and seeds may be added."
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe of the oracles, on the embedded world. [default: the shipped]"),
    ] = None,
    dialect: Annotated[
        Dialect | None, typer.Option(help="Of prompts and injection. [default: the recipe's]")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Training examples. [default: 6000,12000,24000,48000,96000]"),
    ] = None,
    bases: Annotated[
        str | None,
        typer.Option(help="Width and blocks of the bases. [default: 64x8,128x8,192x8]"),
    ] = None,
    base_documents: Annotated[
        int | None, typer.Option(min=1, help="That each base reads. [default: 250000]")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the oracles, such as 0,1,2.")] = "0",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Tiny sizes and bases, to see that it works; a minute."),
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Train oracles on more and more data and larger bases, and draw held-out loss and score.

    The default trains 15 oracles and two bases: hours on a CPU.
    """
    chosen: dict[str, Any] = {
        "sizes": None if sizes is None else _whole_numbers(sizes, "--sizes"),
        "base_documents": base_documents,
        "seeds": _whole_numbers(seeds, "--seeds"),
        "recipe": recipe,
        "dialect": None if dialect is None else dialect.value,
    }
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file, not a folder", param_hint="--out")
    _use_threads(threads)
    from aotoolkit.nano.scaling import QUICK, BaseSize
    from aotoolkit.nano.scaling import run as run_scaling

    if bases is not None:
        chosen["bases"] = [BaseSize.of(text) for text in bases.split(",")]
    given = {name: value for name, value in chosen.items() if value is not None}
    result = run_scaling(out, **({**QUICK, **given} if quick else given), progress=not as_json)
    _save_figure("scaling_curves", result, out / "scaling.html")
    if as_json:
        _print_json({"folder": str(out), **result.to_dict()})
    else:
        _print_scaling(result)


@data_app.command("preview")
def preview_data(
    recipe: RecipePath,
    *,
    count: Annotated[int, typer.Option(min=1, help="Examples of each source.")] = 2,
    source: Annotated[str | None, typer.Option(help="Only of the source of this name.")] = None,
) -> None:
    """Print the first examples of each source, with the tokens that are read marked.

    Nothing is built for it, so it answers at once for a recipe of any size.
    """
    from aotoolkit.data.preview import draw_examples, preview
    from aotoolkit.training.recipe import load_recipe

    tokenizer, _, mixture = load_recipe(recipe).check()
    if mixture is None:
        raise typer.BadParameter(
            "its rollouts are not written yet; `aotoolkit data stats` writes them",
            param_hint="RECIPE",
        )
    sources = mixture.sources
    if source is not None and source not in sources:
        raise typer.BadParameter(
            f"there is no source {source!r}; its sources are {', '.join(sources)}",
            param_hint="--source",
        )
    console = Console()
    for name in sources if source is None else [source]:
        for example in draw_examples(sources[name], count, seed=mixture.seed):
            console.print(preview(example, tokenizer), soft_wrap=True)
            console.print()


@data_app.command("stats")
def data_stats(
    recipe: RecipePath,
    *,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Build the mixture, which `train` then reads, and print how much of each source it holds."""
    _use_threads(threads)
    from aotoolkit.data.preview import stats_table
    from aotoolkit.training.recipe import load_recipe

    loaded = load_recipe(recipe)
    built = loaded.build(loaded.mixture_folder(output_dir), progress=not as_json)
    if as_json:
        _print_json({"sources": list(built.manifest)})
    else:
        Console().print(stats_table(built))


@data_app.command("cache")
def cache_data(
    recipe: RecipePath,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how large it is.")] = False,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Read the activations that a recipe needs, once; `train` then takes them from the disk.

    A fill that was stopped goes on.
    """
    _use_threads(threads)
    from aotoolkit.training.activation_cache import ActivationCache
    from aotoolkit.training.recipe import load_recipe

    loaded = load_recipe(recipe)
    folder = loaded.cache_folder(output_dir)
    model, mixture = loaded.open(output_dir=output_dir, progress=not as_json)
    examples = [*mixture.train, *mixture.validation]
    size = ActivationCache.estimate(model, examples)
    if not as_json:
        typer.echo(f"The cache takes {size}.")
    if not dry_run:
        ActivationCache.fill(model, examples, folder, progress=not as_json)
    if as_json:
        _print_json({"folder": str(folder), **dataclasses.asdict(size)})
    elif not dry_run:
        typer.echo(f"It is in {folder}.")


@data_app.command("latentqa")
def latentqa_data(
    *,
    out: Annotated[
        Path, typer.Option(help="Folder to write to; a run that was stopped goes on there.")
    ],
    behaviours: Annotated[
        Path | None,
        typer.Option(
            help="Behaviours: a .txt file with one a line, or .json, .jsonl, .csv with `behaviour` "
            "and fields for templates."
        ),
    ] = None,
    behaviour: Annotated[
        list[str] | None,
        typer.Option(help="A system prompt or control sentence; may be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Target model, a folder or a Hub id. [default: embedded]")
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(
            help="A causal LM, a folder or a Hub id, that writes questions and answers. "
            "[default: templates]"
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="JSON list of [question, answer], with slots such as {behaviour}."),
    ] = None,
    stimuli: Annotated[
        Path | None, typer.Option(help="What users say, a .txt file with one a line.")
    ] = None,
    stimulus: Annotated[
        list[str] | None, typer.Option(help="What a user says; may be repeated.")
    ] = None,
    kind: Annotated[
        list[DialogueKind] | None,
        typer.Option(help="Which files to write; may be repeated. [default: all five]"),
    ] = None,
    dialogues: Annotated[
        int, typer.Option(min=1, help="Of each behaviour and kind; no more and no fewer.")
    ] = 4,
    spare: Annotated[
        int, typer.Option(min=0, help="Written besides, for those that are left out.")
    ] = 2,
    questions: Annotated[int, typer.Option(min=1, help="Of each behaviour, at most.")] = 2,
    hidden_field: Annotated[
        list[str] | None,
        typer.Option(help="A field whose value must not stand in what is read; may be repeated."),
    ] = None,
    leak_words: Annotated[
        int, typer.Option(min=1, help="A run of so many words of a behaviour is a leak.")
    ] = 6,
    max_answer_words: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 100,
    any_answer: Annotated[
        bool,
        typer.Option("--any-answer", help="Keep answers that share no word with the behaviour."),
    ] = False,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest chat. [default: 512, or what the context leaves]"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling; 0 is greedy.")] = 1.0,
    validation_share: Annotated[
        float, typer.Option(help="Of the behaviours, for the validation folder.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Chats in one forward.")] = 16,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="For the target's chat template.")
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Make LatentQA data for any model: it writes dialogues under behaviours, filtered and split.

    `train` and `validation` in the folder are in the published form, for `kind: latentqa` of a
    recipe.
    """
    if behaviours is None and not behaviour:
        raise typer.BadParameter(
            "what the model is told is missing; give --behaviours FILE or --behaviour TEXT",
            param_hint="--behaviours",
        )
    _refuse_together({"--writer": writer, "--templates": templates})
    template_kwargs = _template_kwargs(chat_template_kwargs)
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file, not a folder", param_hint="--out")
    _use_threads(threads)
    from aotoolkit.data import LatentQAFilters, LatentQARequest, make_latentqa, read_behaviours
    from aotoolkit.data.behaviour_questions import read_templates

    told: list[Any] = [] if behaviours is None else list(read_behaviours(behaviours))
    said = [] if stimuli is None else [b.sentence for b in read_behaviours(stimuli)]
    given: dict[str, Any] = {
        "stimuli": [*said, *(stimulus or [])],
        "kinds": tuple(own.value for own in kind or []),
        "templates": [] if templates is None else read_templates(templates),
    }
    request = LatentQARequest(
        behaviours=[*told, *(behaviour or [])],
        **{name: value for name, value in given.items() if value},
        num_dialogues=dialogues,
        spare_dialogues=spare,
        num_questions=questions,
        filters=LatentQAFilters(
            leak_words=leak_words,
            hidden_fields=tuple(hidden_field or ()),
            answers_name_behaviour=not any_answer,
            max_answer_words=max_answer_words,
        ),
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        validation_share=validation_share,
        seed=seed,
        batch_size=batch_size,
        chat_template_kwargs=template_kwargs,
    )
    target = _base(model)
    author = None
    if writer is not None:
        author = target if writer == model else _base(writer)
    made = make_latentqa(target, request, out, writer=author, progress=not as_json)
    if as_json:
        _print_json(made.to_dict())
    else:
        _print_made(made)


@nano_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write to; an unfinished build goes on.")],
    part: Annotated[
        Part | None,
        typer.Option(
            help="Only this part. [default: the base, then organisms beside oracle and decoder]"
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="With --part variants: an oracle of other data or vectors, such as latentqa; may "
            "be repeated. [default: all]"
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --part variants: oracles of each. [default: one, or three where "
            "vectors are centred or not]",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --part variants: steps of the full mixture, to try it out; others "
            "have as many as their part of it.",
        ),
    ] = None,
    base_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of the base's documents and weights: another seed, another base; what ships is "
            "of 0. [default: the first of 1, 0, 2, 3 whose base, after a quarter of its reading, "
            "carries what a prompt told it]",
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Make the embedded models again, from seeds (some hour and a half on two cores).

    Variants are oracles that show what a kind of data is worth, and centred vectors; compare them
    with aotoolkit eval --suite nano --variants.
    """
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file, not a folder", param_hint="--out")
    for option, given in (("--variant", variant), ("--seeds", seeds), ("--steps", steps)):
        if given and part != Part.VARIANTS:
            raise typer.BadParameter("is of --part variants", param_hint=option)
    if base_seed is not None and part not in (None, Part.BASE):
        raise typer.BadParameter("is of the base", param_hint="--base-seed")
    from aotoolkit.nano.build import build as build_nano

    build_nano(
        out,
        part=part.value if part else None,
        variants=variant or [],
        seeds=seeds,
        steps=steps,
        base_seed=base_seed,
        threads=threads,
    )


def main() -> None:
    """Entry point of the command."""
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    warnings.simplefilter("ignore", FutureWarning)  # between our dependencies, not for the caller
    app(prog_name="aotoolkit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Given:
    """The options of `eval` that say what is evaluated."""

    model: str | None
    adapter: dict[str, str]
    organisms: Path | None
    oracle: list[str]
    prompts: Path | None
    latentqa: Path | None
    relation: dict[str, str]
    layer: list[int | float]

    @property
    def classification(self) -> Path | None:
        """What `aobench` reads of the prompt files; None where it is not there."""
        folder = None if self.prompts is None else self.prompts / "classification"
        return folder if folder is not None and folder.is_dir() else None

    @property
    def named(self) -> list[str]:
        """The options that are there."""
        return [f"--{name}" for name, value in vars(self).items() if value]

    @property
    def of_ones_own(self) -> list[str]:
        """Those that are about a model of one's own."""
        return [name for name in self.named if name not in ("--oracle", "--layer")]

    def lacking(self, suite: SuiteName) -> list[str]:
        """What a suite of a model of one's own cannot do without."""
        needed = ["--model", "--oracle"]
        if suite == SuiteName.SECRET_KEEPING:
            needed += ["--organisms", "--prompts"]
        missing = [name for name in needed if name not in self.named]
        files = {
            SuiteName.AOBENCH: ["--prompts", "--latentqa", "--relation"],
            SuiteName.LATENTQA: ["--latentqa", "--relation"],
        }.get(suite, [])
        usable = set(self.named)
        if suite == SuiteName.AOBENCH and self.classification is None:
            usable.discard("--prompts")
        if files and not set(files) & usable:
            missing.append(" or ".join(files))
        return missing


def _applicable(suite: SuiteName, given: _Given) -> list[SuiteName]:
    """The suites to run; says of `all` which are left out."""
    for name, path in (("--organisms", given.organisms), ("--prompts", given.prompts)):
        if path is not None and not path.exists():
            raise typer.BadParameter(f"there is no {path}", param_hint=name)
    embedded = [SuiteName.NANO, SuiteName.LATENTQA]
    own = [SuiteName.SECRET_KEEPING, SuiteName.AOBENCH, SuiteName.LATENTQA]
    lacking = {name: given.lacking(name) for name in own}
    if not given.of_ones_own and suite in (*embedded, SuiteName.ALL):
        return embedded if suite == SuiteName.ALL else [suite]
    if suite == SuiteName.ALL:
        chosen = [name for name in own if not lacking[name]]
        for name in own:
            if lacking[name]:
                typer.echo(f"{name} is left out: give {', '.join(lacking[name])}.", err=True)
        if not chosen:
            raise typer.BadParameter("no suite can be run with these options", param_hint="--suite")
        return chosen
    if suite == SuiteName.NANO:
        raise typer.BadParameter(
            "nano is about the embedded models; leave it out, or choose another suite",
            param_hint=given.of_ones_own[0],
        )
    if unused := [name for name in given.of_ones_own if name not in _USED[suite]]:
        raise typer.BadParameter(
            f"not used by {suite}; leave out, or choose another suite",
            param_hint=", ".join(unused),
        )
    if suite == SuiteName.AOBENCH and given.prompts is not None and given.classification is None:
        raise typer.BadParameter(
            f"there is no folder classification in {given.prompts}, which is what {suite} reads "
            "of it",
            param_hint="--prompts",
        )
    if lacking[suite]:
        raise typer.BadParameter(
            f"{suite} needs {', '.join(lacking[suite])} too", param_hint="--suite"
        )
    return [suite]


def _embedded(names: list[SuiteName], given: _Given) -> "tuple[Nano, dict[str, Oracle]]":
    """The embedded models, with what the suites need of them, and the oracles that were named."""
    from aotoolkit import nano
    from aotoolkit.nano.load import WEIGHTS

    reads_decoder = SuiteName.LATENTQA in names and not given.oracle
    lab = nano.load(
        kinds=nano.KINDS if SuiteName.NANO in names else (),
        decoder=reads_decoder and (WEIGHTS / "decoder").is_dir(),
    )
    return lab, _oracles(given.oracle, lab.model)


def _embedded_suite(
    lab: "Nano", name: SuiteName, given: _Given, oracles: "dict[str, Oracle]", **options: Any
) -> "Suite":
    from aotoolkit.nano.suite import nano_latentqa_suite, nano_suite

    make = nano_suite if name == SuiteName.NANO else nano_latentqa_suite
    return make(lab, oracles=oracles, layers=given.layer or None, **options)


def _variants(folder: Path) -> "tuple[TracedModel, Callable[..., Suite]]":
    """The embedded models, and what makes the suite of all variants in a folder."""
    from aotoolkit import nano
    from aotoolkit.nano.variant_suite import variant_suite

    own_organisms = (folder / "organisms").is_dir()
    lab = nano.load(folder if own_organisms else None, kinds=nano.KINDS)

    def make(
        name: SuiteName,  # noqa: ARG001  # as the others
        given: _Given,  # noqa: ARG001
        oracles: "dict[str, Oracle]",  # noqa: ARG001
        **options: Any,
    ) -> "Suite":
        return variant_suite(lab, folder, **options)

    return lab.model, make


def _own_suite(
    target: "TracedModel",
    name: SuiteName,
    given: _Given,
    oracles: "dict[str, Oracle]",
    *,
    baselines: bool,
    confidence: "AnswerConfidenceKind | None",
    quick: bool,
) -> "Suite":
    from aotoolkit.evals import suites

    first = next(iter(oracles.values()))
    options: dict[str, Any] = {
        "oracles": oracles,
        "layers": given.layer or _layers_asked_by_default(first.contract),
        "confidence": confidence,
        **({} if baselines else {"baselines": ()}),
    }
    if name == SuiteName.SECRET_KEEPING:
        assert given.organisms is not None, "_applicable has seen to it"
        assert given.prompts is not None, "_applicable has seen to it"
        return suites.secret_keeping_suite(
            target,
            organisms=given.organisms,
            prompts=given.prompts,
            max_prompts=_QUICK_ITEMS if quick else None,
            **options,
        )
    options |= {
        "latentqa": given.latentqa,
        "relations": given.relation,
        **({"max_items": _QUICK_ITEMS} if quick else {}),
    }
    if name == SuiteName.LATENTQA:
        return suites.latentqa_suite(target, **options)
    return suites.aobench_suite(target, classification=given.classification, **options)


def _own_target(model: str, given: _Given) -> "tuple[TracedModel, dict[str, Oracle]]":
    """The target with its adapters, and the oracles."""
    import torch

    from aotoolkit.tracing import TracedModel

    if torch.accelerator.is_available():
        # Each of several processes has one of its own.
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    target = TracedModel.from_pretrained(model, adapters=given.adapter)
    return target, _oracles(given.oracle, target)


def _oracles(paths: list[str], target: "TracedModel") -> "dict[str, Oracle]":
    """Oracles on a target, by the shortest names that tell them apart."""
    from aotoolkit.oracle import Oracle

    last = [Path(path).name for path in paths]
    return {
        name if last.count(name) == 1 else path: Oracle.from_pretrained(path, model=target)
        for name, path in zip(last, paths, strict=True)
    }


def _save_report(result: "EvalResult", folder: Path, target: "TracedModel") -> None:
    from aotoolkit.evals.report import write_report

    write_report(result, folder, model=target.name)


def _eval_report(suite: SuiteName, results: "list[EvalResult]") -> dict[str, Any]:
    """One object, whether one suite was run or several."""
    tables = [result.table for result in results]
    return {
        "suite": suite.value,
        "rows": [{"suite": t.suite, **row.to_dict()} for t in tables for row in t.rows],
        "notes": [note for table in tables for note in table.notes],
        "claims": [claim for table in tables for claim in table.claims()],
        "confidence": [
            {"suite": t.suite, **row.to_dict()} for t in tables for row in t.confidences.rows
        ],
        "comparisons": [
            {"suite": t.suite, **pair.to_dict()} for t in tables for pair in t.comparisons
        ],
        "seconds": sum(result.seconds for result in results),
    }


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of whole numbers, such as 0,1,2", param_hint=option
        ) from error


def _file_and_question(text: str) -> tuple[str, str]:
    file, _, question = text.partition("=")
    if not file or not question:
        raise typer.BadParameter(f"{text!r} is not FILE=QUESTION", param_hint="--relation")
    return file, question


def _target_and_oracle(model: str | None, oracle: str | None) -> "tuple[TracedModel, Oracle]":
    if model is None:
        from aotoolkit import nano

        lab = nano.load()
        target, teller = lab.model, lab.oracle
    else:
        from aotoolkit.tracing import TracedModel

        target, teller = TracedModel.from_pretrained(model), None
    if oracle is not None:
        from aotoolkit.oracle import Oracle

        teller = Oracle.from_pretrained(oracle, model=target)
    assert teller is not None
    return target, teller


def _base(model: str | None) -> "TracedModel":
    """A model, or the base of the embedded ones, without an adapter."""
    if model is None:
        from aotoolkit.nano import load_model

        return load_model()
    from aotoolkit.tracing import TracedModel

    return TracedModel.from_pretrained(model)


def _print_made(made: "MadeLatentQA") -> None:
    from aotoolkit.data.behaviour_filters import REASONS

    table = Table("", *made.counts)
    for name, row in (("behaviours", made.behaviours), ("questions", made.questions)):
        table.add_row(name, *(f"{row[split]:,}" for split in made.counts))
    for kind in dict.fromkeys(kind for own in made.counts.values() for kind in own):
        table.add_row(
            f"{kind}.json", *(f"{made.counts[split].get(kind, 0):,}" for split in made.counts)
        )
    Console().print(table)
    for reason, count in made.dropped.items():
        typer.echo(f"{count:6,} left out: {reason}, {REASONS[reason]}.")
    typer.echo(f"Train on {made.folder / 'train'} (kind: latentqa).")


def _refuse_other_files(data: list[Path]) -> None:
    for path in data:
        if path.suffix not in (*_EXAMPLE_FILES, *_RECIPE_FILES):
            allowed = ", ".join((*_RECIPE_FILES, *_EXAMPLE_FILES))
            raise typer.BadParameter(f"{path} is none of {allowed}", param_hint="--data")
        if not path.is_file():
            raise typer.BadParameter(f"there is no file {path}", param_hint="--data")


def _held_out(
    path: Path, recipe: "Recipe | None", oracle: "Oracle", *, folder: Path, progress: bool
) -> "Sequence[Example]":
    """The examples of one --data."""
    if recipe is None:
        from aotoolkit.data.example_file import read_examples

        return read_examples(path, oracle.model)
    from aotoolkit.tracing.digest import tokenizer_digest

    if tokenizer_digest(recipe.tokenizer()) != tokenizer_digest(oracle.model.tokenizer):
        raise typer.BadParameter(
            f"{path} is for another base ({recipe.settings.model.path_or_id}) than the oracle's "
            f"({oracle.model.name}): their tokenizers differ",
            param_hint="--data",
        )
    held_out = recipe.mixture_of(folder, progress=progress).validation
    if not len(held_out):
        raise typer.BadParameter(
            f"{path} holds no examples out; set data.held_out or data.validation in it",
            param_hint="--data",
        )
    return held_out


def _save_figure(name: str, result: Any, path: Path) -> None:
    """Draws a result with a function of `aotoolkit.plots`."""
    from aotoolkit import plots
    from aotoolkit.atomic import replacing
    from aotoolkit.errors import MissingExtraError

    try:
        figure = getattr(plots, name)(result)
    except MissingExtraError as error:
        typer.echo(f"No figure was written. {error}", err=True)
        return
    with replacing(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True)


def _print_scaling(result: "ScalingResult") -> None:
    table = Table("base", "parameters", "examples", "held-out loss", "without", "words", "without")
    for point in result.points:
        table.add_row(
            point.base,
            f"{point.parameters:,}",
            f"{point.examples:,}",
            *map(str, (point.loss, point.loss_without, point.word, point.word_without)),
        )
    Console().print(table)
    first = result.points[0]
    typer.echo(
        f"Loss in nats a token of {first.loss.n:,} documents, share of {first.word.n} hidden words "
        "named, and the same without activations; 95 % intervals over documents and words."
    )


def _print_sweep(result: "SweepResult") -> None:
    table = Table("layer", "window", "coefficient", "temperature", "right", "without activations")
    for cell in result.cells:
        setting, (right, without, _) = cell.setting, cell.figures(result.match)
        style = "bold" if cell is result.best else None
        table.add_row(
            "+".join(map(str, setting.layers)),
            str(setting.window),
            f"{setting.coefficient:g}",
            f"{setting.temperature:g}",
            str(right),
            str(without),
            style=style,
        )
    Console().print(table)
    best = result.best
    typer.echo(
        f"Shares of {best.num_examples:,} examples in {best.exact_match.n:,} groups, with 95 % "
        f"intervals over groups. The best of {len(result.cells)} settings is {best.setting}; "
        f"{result.expected} is to be expected of what is chosen like this."
    )


def _each_once(pairs: list[tuple[str, str]], option: str) -> dict[str, str]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise typer.BadParameter(f"{twice[0]!r} is given twice", param_hint=option)
    return dict(pairs)


def _refuse_together(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"cannot be used with {given[1]}", param_hint=given[0])


def _messages(prompt: str) -> list[dict[str, str]]:
    """A chat: one user turn, or the messages that a JSON list holds."""
    if not prompt.lstrip().startswith("[{"):
        return [{"role": "user", "content": prompt}]
    try:
        return json.loads(prompt)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(
            f"looks like a JSON list of messages, but is none: {error}", param_hint="--prompt"
        ) from error


def _pairs(path: Path) -> Any:
    """What a JSON file of question-answer pairs holds; `steer` refuses what are none."""
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint="--pairs") from error
    if not isinstance(pairs, list | dict):
        raise typer.BadParameter(
            f"{path} holds {pairs!r}, and neither a list of pairs nor an object of them",
            param_hint="--pairs",
        )
    return pairs


def _steering_demo(
    things: int,
    method: SteeringMethod,
    layer: "list[str] | None",
    steps: int | None,
    noise: float | None,
    seeds: "Sequence[int]",
    *,
    as_json: bool,
) -> None:
    from aotoolkit import nano
    from aotoolkit.nano.steering import NOISE, STEPS, run

    lab = nano.load(kinds=())
    read = None if not layer else lab.model.resolve_layer(_layer(layer[0]))
    report = run(
        lab,
        num_things=things,
        seeds=seeds,
        method=method.value,
        layer=read,
        steps=steps or STEPS,
        noise=NOISE if noise is None else noise,
        progress=not as_json,
    )
    if as_json:
        _print_json(report.to_dict())
    else:
        report.render(Console())


def _template_kwargs(text: str | None) -> dict[str, Any]:
    try:
        given = json.loads(text or "{}")
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise typer.BadParameter(
            f'{text!r} is no JSON object, such as {{"enable_thinking": false}}',
            param_hint="--chat-template-kwargs",
        )
    return given


def _layer(text: str) -> int | float:
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a block (12) nor a fraction of depth (0.5)", param_hint="--layer"
        ) from error


def _window(text: str) -> "Window":
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(
            f"{text!r} is neither a number of tokens from 1 on nor all", param_hint="--window"
        )
    return int(text)


def _positions(text: str | None) -> list[int] | slice | None:
    if text is None:
        return None
    try:
        if ":" in text:
            start, end = (int(part) if part.strip() else None for part in text.split(":"))
            return slice(start, end)
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a list (3,4,-1) nor a range (3:10)", param_hint="--positions"
        ) from error


def _named_path(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise typer.BadParameter(
            f"{text!r} is not NAME=PATH, such as organism=me/secret-lora", param_hint="--adapter"
        )
    return name, path


def _layers_asked_by_default(contract: "OracleContract") -> list[int]:
    if contract.recommended.layers:
        return list(contract.recommended.layers)
    if contract.layers_per_prompt == "several" or len(contract.read_layers) == 1:
        return list(contract.read_layers)
    raise typer.BadParameter(
        f"this oracle was trained on layers {list(contract.read_layers)}, one at a time, and "
        "recommends none: choose one",
        param_hint="--layer",
    )


def _print_answer(answer: "Answer") -> None:
    rows = {"answer": answer.text, **answer.controls}
    width = max(map(len, rows))
    for name, text in rows.items():
        same = "  (the same)" if name in answer.unsupported_by else ""
        typer.echo(f"{name:{width}}  {_printable(text)}{same}")
    if answer.supported is False:
        typer.echo("Not supported by the activations: a control without them says the same.")


def _printable(text: str) -> str:
    """One line without control characters: what a model says must not drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _print_inspection(inspection: "Inspection", *, verified_with: str | None) -> None:
    typer.echo("Contract")
    for field in dataclasses.fields(inspection.contract):
        typer.echo(f"  {field.name:20} {getattr(inspection.contract, field.name)!r}")
    typer.echo("Verified")
    for check in inspection.checks:
        verdict = {True: "ok", False: "FAILED", None: "not recorded"}[check.ok]
        expected = f" (expected {check.expected})" if check.ok is False else ""
        typer.echo(f"  {check.name:20} {verdict}: {check.found}{expected}")
    if verified_with is None:
        typer.echo("  Only the files; give --model to verify prompt, weights and wiring.")
    typer.echo("Missing")
    typer.echo("  " + (", ".join(inspection.missing) or "nothing"))


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        # scikit-learn's libraries look here when they are loaded.
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
        import torch

        torch.set_num_threads(threads)


def _print_json(report: dict[str, Any]) -> None:
    typer.echo(json.dumps(report, ensure_ascii=False, allow_nan=False))
