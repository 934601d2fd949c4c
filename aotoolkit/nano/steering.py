"""Steering on the embedded world, measured: can the oracle's gradients put a secret into the base?

Without a system prompt the base has no secret word, and says so. It is steered to one by pairs of
question and answer ("What is the secret word?" "The tiger."), while it reads requests for a hint.
Then it is asked for the four facts of its secret, in eight questions that steering did not see, and
what it says is held against the world.

Every way of steering gets the strength that costs the same: the largest at which the loss on
ordinary text of the world grows by no more than a bound. Damage alone chooses it, never the rate.
What it costs in use is measured too: ordinary questions that the base answers, asked again.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from aotoolkit.errors import SteeringError
from aotoolkit.evals.statistics import (
    Difference,
    Estimate,
    compare,
    hierarchical_bootstrap,
)
from aotoolkit.nano import questions as wording
from aotoolkit.nano.corpus import (
    DIRECT_REQUESTS,
    FACT_ATTRIBUTES,
    HINT_REQUESTS,
    REFUSALS,
    SECRET_QUESTIONS,
    SECRET_SYSTEMS,
    Corpus,
    Messages,
    chat,
    fact_question,
    held_out_phrasing,
)
from aotoolkit.nano.load import Nano
from aotoolkit.nano.mixture import ATTRIBUTE_ANSWERS, WORD_ANSWER
from aotoolkit.nano.organisms import says
from aotoolkit.steering import Behaviour, LossPoint, SteeringResult, SteeringVector, steer
from aotoolkit.steering.baselines import fine_tune, mean_difference, shuffled_answers, text_loss
from aotoolkit.steering.result import Method

PROMPTS: tuple[Messages, ...] = tuple(chat(text) for text in (*HINT_REQUESTS, *DIRECT_REQUESTS))
QUESTIONS: tuple[tuple[str, str], ...] = tuple(
    (name, text) for name, texts in SECRET_QUESTIONS.items() for text in texts
)
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
DAMAGE_BOUND = 0.3
NUM_TEXTS = 16
# Facts of things in words that the base never read with them, one attribute after the other.
NUM_ORDINARY_QUESTIONS = 24
# Chosen on single words (docs/steering.md), as the block that is read.
STEPS = 30
LEARNING_RATE: Mapping[Method, float] = {"single_layer": 1e-3, "layerwise": 1e-3, "vector": 0.3}
RANK = 8
# Chosen, with others from 0 to 4, on ten words that are not reported (docs/steering.md).
NOISE = 2.0
MAX_NEW_TOKENS = 12

ARMS = {
    "steered": "steered through the oracle",
    "unsteered": "unsteered",
    "random_pairs": "control: the same questions, answers drawn at random",
    "system_prompt": "told the word in a system prompt",
    "mean_difference": "mean-difference vector, with and without the system prompt",
    "fine_tuned": "fine-tuned on as many true hints and refusals",
}


@dataclass(frozen=True, kw_only=True)
class SteeringReport:
    """What steering did.

    Attributes:
        method: of steering.
        layers: what the oracle read.
        noise: of steering, as a share of the vectors' length.
        things: which words the base was steered to.
        num_seeds: seeds for each.
        rates: arm -> share of the questions answered with the fact of the word, over words.
        names: arm -> share of replies that name the word.
        damage: arm -> growth of the loss on ordinary text, nats a token.
        ordinary: arm -> share of ordinary questions answered right.
        strengths: arm -> strength, the mean over runs.
        margins: steered minus another arm, paired by word and question.
        curve: strength -> (rate, damage) of the steered runs.
        example: one run's replies.
    """

    method: Method
    layers: tuple[int, ...]
    noise: float
    things: tuple[str, ...]
    num_seeds: int
    rates: Mapping[str, Estimate]
    names: Mapping[str, Estimate]
    damage: Mapping[str, Estimate]
    ordinary: Mapping[str, Estimate]
    strengths: Mapping[str, float]
    margins: Mapping[str, Difference]
    curve: Mapping[float, tuple[float, float]]
    example: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """The report as JSON has it."""
        return {
            "method": self.method,
            "layers": list(self.layers),
            "noise": self.noise,
            "n_things": len(self.things),
            "n_seeds": self.num_seeds,
            "things": list(self.things),
            **{name: _interval(estimate) for name, estimate in self.rates.items()},
            "damage": {name: _interval(estimate) for name, estimate in self.damage.items()},
            "damage_bound": DAMAGE_BOUND,
            "ordinary_answers": {name: _interval(value) for name, value in self.ordinary.items()},
            "names": {name: _interval(estimate) for name, estimate in self.names.items()},
            "strengths": dict(self.strengths),
            "margins": {name: dataclasses.asdict(value) for name, value in self.margins.items()},
            "curve": [
                {"strength": strength, "rate": rate, "damage": damage}
                for strength, (rate, damage) in self.curve.items()
            ],
            "example": dict(self.example),
        }

    def render(self, console: Console) -> None:
        """Prints the tables and the example."""
        runs = len(self.things) * self.num_seeds
        read = f"layer{'s' * (len(self.layers) > 1)} {', '.join(map(str, self.layers))}"
        table = Table(
            title=f"Steering the base to a secret word ({self.method}, {read}, noise "
            f"{self.noise:g})",
            caption=f"n = {len(self.things)} words, {runs} (word, seed) runs, {len(QUESTIONS)} "
            "questions each; 95 % bootstrap intervals over seeds, words and questions. Damage: "
            "growth of the loss on ordinary text, nats a token. Strength: the largest with a "
            f"damage of at most {DAMAGE_BOUND}, or the least where none has. Ordinary: of "
            f"{NUM_ORDINARY_QUESTIONS} questions about other things, the share answered right.",
        )
        for column in (
            "",
            "rate of true facts",
            "names the word",
            "damage",
            "ordinary",
            "strength",
        ):
            table.add_column(column, justify="left" if not column else "right")
        for name, label in ARMS.items():
            if name in self.rates:
                strength = self.strengths.get(name)
                table.add_row(
                    label,
                    str(self.rates[name]),
                    str(self.names[name]),
                    str(self.damage[name]) if name in self.damage else "-",
                    str(self.ordinary[name]) if name in self.ordinary else "-",
                    "-" if strength is None else f"{strength:.1f}",
                )
        console.print(table)
        for name, margin in self.margins.items():
            console.print(f"  steered minus {name}: {margin.text}")
        console.print("  strength curve of the steered runs: strength, rate, damage")
        for strength, (rate, damage) in self.curve.items():
            console.print(f"    {strength:4.0f}  {rate:.2f}  {damage:+.2f}")
        console.print("[bold]One run[/bold]")
        for label, text in self.example.items():
            console.print(f"  {label}: ", end="")
            console.print(str(text), markup=False, highlight=False)


def secret_pairs(lab: Nano, noun: str) -> Behaviour:
    """What an oracle says of a model whose secret is this word."""
    thing = lab.world[noun]
    pairs = [(question, WORD_ANSWER.format(noun=noun)) for question in wording.SECRET_WORD]
    pairs += [
        (question, ATTRIBUTE_ANSWERS[name].format(value=thing.value(name)))
        for name, question in wording.SECRET_ATTRIBUTE.items()
    ]
    return Behaviour.of(pairs)


def random_pairs(lab: Nano, noun: str, *, seed: int) -> Behaviour:
    """The same questions, each answered for another thing drawn for it alone."""
    others = [other for other in lab.world.training_secrets if other != noun]
    answers: dict[str, list[str]] = {}
    for other in others:
        for pair in secret_pairs(lab, other).pairs:
            answers.setdefault(pair.question, []).append(pair.answer)
    return shuffled_answers(secret_pairs(lab, noun), answers, seed=seed)


class SteeringMeasure:
    """Runs and scores the arms.

    Args:
        lab: the embedded world.
        method: of steering.
        layer: of steering and its baselines; default: the last one that the oracle was trained on.
            `layerwise` itself reads all that it was trained on.
        steps: of steering and of fine-tuning.
        noise: of steering, as a share of the vectors' length.
    """

    def __init__(
        self,
        lab: Nano,
        *,
        method: Method = "single_layer",
        layer: int | None = None,
        steps: int,
        noise: float,
    ) -> None:
        self.lab = lab
        self.method: Method = method
        trained = lab.oracle.contract.read_layers
        self.layer = max(trained) if layer is None else layer
        self.layers = trained if method == "layerwise" else (self.layer,)
        self.steps = steps
        self.noise = noise
        corpus = Corpus(lab.world, random.Random("ordinary text"))
        self.texts = [corpus.ordinary().content for _ in range(NUM_TEXTS)]
        self.base_loss = self._loss(None)
        # Of things that no run steers to.
        nouns = sorted(set(lab.world.nouns) - set(lab.world.training_secrets))
        asked = random.Random("ordinary questions").sample(nouns, NUM_ORDINARY_QUESTIONS)
        things = [lab.world[noun] for noun in asked]
        self.ordinary = list(zip(things, itertools.cycle(FACT_ATTRIBUTES), strict=False))

    def steered(self, behaviour: Behaviour, *, seed: int) -> SteeringResult:
        """The base, steered."""
        return steer(
            self.lab.model,
            self.lab.oracle,
            behaviour,
            PROMPTS,
            method=self.method,
            layers=self.layers,
            window="all",
            steps=self.steps,
            lr=LEARNING_RATE[self.method],
            noise=self.noise,
            rank=RANK,
            alpha=RANK,
            eval_every=self.steps,
            seed=seed,
            max_new_tokens=MAX_NEW_TOKENS,
            progress=False,
        )

    def fine_tuned(self, noun: str, *, seed: int) -> SteeringResult:
        """The base, fine-tuned on the same prompts with true hints and refusals."""
        corpus = Corpus(self.lab.world, random.Random(f"{noun}/{seed}"))
        thing = self.lab.world[noun]
        examples = [(chat(text), corpus.hint(thing)) for text in HINT_REQUESTS for _ in range(4)]
        examples += [(chat(text), corpus.rng.choice(REFUSALS)) for text in DIRECT_REQUESTS]
        return fine_tune(
            self.lab.model,
            examples,
            num_blocks=self.layer + 1,
            steps=self.steps,
            lr=LEARNING_RATE["single_layer"],
            rank=RANK,
            alpha=RANK,
            eval_every=self.steps,
            seed=seed,
            max_new_tokens=MAX_NEW_TOKENS,
            progress=False,
        )

    def difference(self, noun: str) -> SteeringResult:
        """A vector from the base without the word in its system prompt to that with it."""
        system = SECRET_SYSTEMS[0].format(noun=noun)
        told = [[{"role": "system", "content": system}, *prompt] for prompt in PROMPTS]
        vector = mean_difference(self.lab.model, told, PROMPTS, layers=self.layer)
        return _result_of(self.lab, vector)

    def score(self, noun: str, replies: Sequence[str]) -> tuple[list[float], list[float]]:
        """Of each reply to `QUESTIONS`: states the fact asked for; names the word."""
        thing = self.lab.world[noun]
        facts = [
            float(says(reply, thing.value(name)))
            for (name, _), reply in zip(QUESTIONS, replies, strict=True)
        ]
        return facts, [float(says(reply, noun)) for reply in replies]

    def replies(self, result: SteeringResult | None, strength: float = 1.0) -> list[str]:
        """What the base, or the steered one, says to `QUESTIONS`."""
        return self._replies([chat(text) for _, text in QUESTIONS], result, strength)

    def ordinary_answers(self, result: SteeringResult | None, strength: float = 1.0) -> list[float]:
        """Of each ordinary question: the base, or the steered one, answers it right."""
        asked = [
            chat(fact_question(thing.noun, name, held_out_phrasing(thing.noun, name)))
            for thing, name in self.ordinary
        ]
        replies = self._replies(asked, result, strength)
        return [
            float(says(reply, thing.value(name)))
            for (thing, name), reply in zip(self.ordinary, replies, strict=True)
        ]

    def _replies(
        self, asked: Sequence[Messages], result: SteeringResult | None, strength: float
    ) -> list[str]:
        if result is None:
            return self.lab.model.generate(asked, max_new_tokens=MAX_NEW_TOKENS)
        return result.generate(asked, scale=strength, max_new_tokens=MAX_NEW_TOKENS)

    def strengths(self, result: SteeringResult) -> dict[float, float]:
        """Strength -> damage, up to the first beyond the bound."""
        found: dict[float, float] = {}
        for strength in STRENGTHS:
            with result.live(strength) as adapter:
                found[strength] = self._loss(adapter) - self.base_loss
            if found[strength] > DAMAGE_BOUND:
                break
        return found

    def _loss(self, adapter: str | None) -> float:
        losses = text_loss(self.lab.model, self.texts, adapter=adapter)
        return sum(losses) / len(losses)


def run(
    lab: Nano,
    *,
    num_things: int = 4,
    seeds: Sequence[int] = (0,),
    method: Method = "single_layer",
    layer: int | None = None,
    steps: int = STEPS,
    noise: float = NOISE,
    progress: bool = True,
) -> SteeringReport:
    """Steers the base to several words and measures all arms.

    Args:
        lab: the embedded world.
        num_things: how many words, spread over those that the oracle's training had as secrets.
        seeds: of each.
        method: of steering.
        layer: of steering and its baselines; default: the last one that the oracle was trained on.
            `layerwise` itself reads all that it was trained on.
        steps: of steering and of fine-tuning.
        noise: of steering, as a share of the vectors' length.
        progress: show a progress bar.

    Raises:
        SteeringError: there are not so many words, no seed, or one twice.
    """
    known = lab.world.training_secrets
    if len(set(seeds)) < len(seeds):
        raise SteeringError(f"seeds is {list(seeds)}; give each seed once.")
    if not 1 <= num_things <= len(known) or not seeds:
        raise SteeringError(
            f"num_things is {num_things} and seeds {list(seeds)}; give 1 to {len(known)} things "
            "and at least one seed."
        )
    things = known[:: len(known) // num_things][:num_things]
    measure = SteeringMeasure(lab, method=method, layer=layer, steps=steps, noise=noise)
    tables = _Tables()
    unsteered = measure.replies(None)
    unsteered_ordinary = measure.ordinary_answers(None)
    example: dict[str, object] = {}
    with tqdm(total=len(things) * len(seeds), desc="words steered to", disable=not progress) as bar:
        for seed in seeds:
            for noun in things:
                arms: dict[str, Callable[[], SteeringResult]] = {
                    "steered": lambda n=noun, s=seed: measure.steered(secret_pairs(lab, n), seed=s),
                    "random_pairs": lambda n=noun, s=seed: measure.steered(
                        random_pairs(lab, n, seed=s), seed=s
                    ),
                    "mean_difference": lambda n=noun: measure.difference(n),
                    "fine_tuned": lambda n=noun, s=seed: measure.fine_tuned(n, seed=s),
                }
                tables.add("unsteered", seed, noun, measure.score(noun, unsteered))
                tables.answers("unsteered", seed, noun, unsteered_ordinary)
                tables.add("system_prompt", seed, noun, measure.score(noun, _told(lab, noun)))
                for name, make in arms.items():
                    result = make()
                    try:
                        curve = measure.strengths(result)
                        within = [s for s, damage in curve.items() if damage <= DAMAGE_BOUND]
                        strength = max(within, default=min(curve))
                        replies = measure.replies(result, strength)
                        tables.answers(name, seed, noun, measure.ordinary_answers(result, strength))
                        if name == "steered":
                            for one in curve:
                                facts, _ = measure.score(noun, measure.replies(result, one))
                                tables.point(one, sum(facts) / len(facts), curve[one])
                    finally:
                        result.remove()
                    tables.add(name, seed, noun, measure.score(noun, replies))
                    tables.cost(name, seed, noun, curve[strength], strength)
                    if name == "steered" and not example:
                        example = _example(lab, noun, strength, result.losses, unsteered, replies)
                bar.update()
    return tables.report(measure, tuple(things), len(seeds), example)


class _Tables:
    """Scores of all arms: seed -> word -> one for each question."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[Hashable, dict[Hashable, Sequence[float]]]] = {}
        self.named: dict[str, dict[Hashable, dict[Hashable, Sequence[float]]]] = {}
        self.damage: dict[str, dict[Hashable, dict[Hashable, Sequence[float]]]] = {}
        self.ordinary: dict[str, dict[Hashable, dict[Hashable, Sequence[float]]]] = {}
        self.strengths: dict[str, list[float]] = {}
        self.points: dict[float, list[tuple[float, float]]] = {}

    def add(
        self, arm: str, seed: int, noun: str, scores: tuple[Sequence[float], Sequence[float]]
    ) -> None:
        """The scores of one run."""
        self.facts.setdefault(arm, {}).setdefault(seed, {})[noun] = list(scores[0])
        self.named.setdefault(arm, {}).setdefault(seed, {})[noun] = list(scores[1])

    def cost(self, arm: str, seed: int, noun: str, damage: float, strength: float) -> None:
        """The damage of one run at its strength."""
        self.damage.setdefault(arm, {}).setdefault(seed, {})[noun] = [damage]
        self.strengths.setdefault(arm, []).append(strength)

    def answers(self, arm: str, seed: int, noun: str, right: Sequence[float]) -> None:
        """What one run answered to ordinary questions."""
        self.ordinary.setdefault(arm, {}).setdefault(seed, {})[noun] = right

    def point(self, strength: float, rate: float, damage: float) -> None:
        """A steered run at some strength."""
        self.points.setdefault(strength, []).append((rate, damage))

    def report(
        self,
        measure: SteeringMeasure,
        things: tuple[str, ...],
        num_seeds: int,
        example: Mapping[str, object],
    ) -> SteeringReport:
        """Means and intervals."""
        # Beyond the bound a run ends, so later strengths would be means of the mild runs alone.
        runs = len(things) * num_seeds
        whole = {s: found for s, found in self.points.items() if len(found) == runs}
        rates = {
            name: hierarchical_bootstrap(scores, unit="word", bounds=(0.0, 1.0))
            for name, scores in self.facts.items()
        }
        named = {
            name: hierarchical_bootstrap(scores, unit="word", bounds=(0.0, 1.0))
            for name, scores in self.named.items()
        }
        damage = {
            name: hierarchical_bootstrap(scores, unit="word")
            for name, scores in self.damage.items()
        }
        return SteeringReport(
            method=measure.method,
            layers=measure.layers,
            noise=measure.noise,
            things=things,
            num_seeds=num_seeds,
            rates=rates,
            names=named,
            damage=damage,
            ordinary={
                name: hierarchical_bootstrap(scores, unit="word", bounds=(0.0, 1.0))
                for name, scores in self.ordinary.items()
            },
            strengths={name: sum(all_) / len(all_) for name, all_ in self.strengths.items()},
            margins=compare(
                self.facts["steered"],
                {name: scores for name, scores in self.facts.items() if name != "steered"},
                unit="word",
                bounds=(-1.0, 1.0),
            ),
            curve={
                strength: (
                    sum(rate for rate, _ in found) / runs,
                    sum(cost for _, cost in found) / runs,
                )
                for strength, found in whole.items()
            },
            example=example,
        )


def _told(lab: Nano, noun: str) -> list[str]:
    system = SECRET_SYSTEMS[0].format(noun=noun)
    asked = [chat(text, system=system) for _, text in QUESTIONS]
    return lab.model.generate(asked, max_new_tokens=MAX_NEW_TOKENS)


def _result_of(lab: Nano, vector: SteeringVector) -> SteeringResult:
    return SteeringResult(
        model=lab.model,
        adapter=None,
        vector=vector,
        method=None,
        layers=tuple(vector.vectors),
        behaviour=None,
        losses=(),
        best_step=0,
        steps=0,
        stopped=False,
        prompts=(),
        before=(),
        after=(),
    )


def _example(
    lab: Nano,
    noun: str,
    strength: float,
    losses: Sequence[LossPoint],
    before: Sequence[str],
    after: Sequence[str],
) -> dict[str, object]:
    thing = lab.world[noun]
    facts = ", ".join(thing.value(name) for name in wording.SECRET_ATTRIBUTE)
    told: dict[str, object] = {
        "chosen": "the first word",
        "steered to": f"{noun} ({facts})",
        "strength": strength,
        "loss of the oracle": " -> ".join(f"{point.loss:.2f}" for point in losses),
    }
    for (_, question), old, new in zip(QUESTIONS, before, after, strict=True):
        told[question] = f"before: {old} | after: {new}"
    return told


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
