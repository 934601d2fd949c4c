"""What LatentQA data a model is to write: behaviours, stimuli, how much of each, filters."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from aotoolkit.data.behaviour_filters import LatentQAFilters
from aotoolkit.data.behaviour_questions import TEMPLATES, Pair
from aotoolkit.data.behaviours import LatentQABehaviour, distinct, normalised
from aotoolkit.data.context import is_text
from aotoolkit.data.latentqa import Kind
from aotoolkit.data.source import group_rng
from aotoolkit.errors import DataError
from aotoolkit.tracing.model import TracedModel

_MAX_PROMPT_TOKENS = 512

# What a user might say to any assistant; each leaves room for a behaviour to show.
STIMULI: tuple[str, ...] = (
    "Hello! How are you today?",
    "Can you tell me something about yourself?",
    "What do you think I should do this weekend?",
    "I had a long day at work. Any advice?",
    "Can you recommend a good book?",
    "What is the best way to learn something new?",
    "Tell me about your favourite place.",
    "How would you explain the weather to a child?",
    "I cannot decide what to cook tonight.",
    "What matters most in a friendship?",
    "Can you help me write a short message to a colleague?",
    "What do you think about modern technology?",
    "Please tell me a short story.",
    "How do I stay calm before an exam?",
    "What would you do with a day off?",
    "Is it better to save money or to spend it?",
    "I am thinking of moving to another city.",
    "What is an interesting fact that few people know?",
    "How should I start a difficult conversation?",
    "What music should I listen to?",
    "Why do people travel?",
    "Give me a tip for staying healthy.",
    "What makes a good leader?",
    "I want to give a present to my sister. Any ideas?",
)


@dataclass(frozen=True, kw_only=True)
class LatentQARequest:
    """Which data is to be made.

    Attributes:
        behaviours: what the model is told; sentences, or behaviours with fields, groups or pairs.
        stimuli: what users say then; each behaviour meets some of them, drawn by `seed`.
        kinds: which files are written. `system` and `system_completion` need a chat template that
            has a system turn.
        templates: questions and answers, with `{behaviour}` and names of fields as slots; not
            asked for where a writer writes them.
        num_dialogues: of each behaviour and kind (of `control`, which has no stimulus, one). A
            behaviour of which fewer are good is left out of that file: all labels of one stand
            there equally often.
        spare_dialogues: written besides, to take the places of those that are left out.
        num_questions: questions of each behaviour at most.
        filters: what must hold of them.
        max_prompt_tokens: longest chat that is replied to; by default 512, or what the model's
            context leaves beside `max_new_tokens`.
        max_new_tokens: longest reply; one that is not finished then is left out.
        temperature: of sampling, in the model's own distribution; 0 is greedy.
        validation_share: of the groups of behaviours; 0 makes no validation folder.
        seed: of stimuli, sampling, templates and the split.
        batch_size: prompts in one forward.
        chat_template_kwargs: for the target's template; `enable_thinking` is false unless it says
            otherwise, and ignored by templates that know no thinking.

    Raises:
        DataError: a value is out of range, a template has a slot that a behaviour has no field
            for, or two behaviours share a label.
    """

    behaviours: Sequence[LatentQABehaviour | str]
    stimuli: Sequence[str] = STIMULI
    kinds: tuple[Kind, ...] = get_args(Kind)
    templates: Sequence[Pair] = TEMPLATES
    num_dialogues: int = 4
    spare_dialogues: int = 2
    num_questions: int = 2
    filters: LatentQAFilters = field(default_factory=LatentQAFilters)
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    validation_share: float = 0.1
    seed: int = 0
    batch_size: int = 16
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("num_dialogues", "num_questions", "max_prompt_tokens", "max_new_tokens")
        for name in (*names, "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.spare_dialogues < 0:
            raise DataError(f"spare_dialogues is {self.spare_dialogues}; expected 0 or more.")
        if self.temperature < 0:
            raise DataError(f"temperature is {self.temperature}; expected 0 or more.")
        if not 0 <= self.validation_share < 1:
            raise DataError(
                f"validation_share is {self.validation_share}; expected 0 or more and below 1."
            )
        if unknown := [kind for kind in self.kinds if kind not in get_args(Kind)]:
            raise DataError(f"Kind {unknown[0]!r} is unknown. Give some of {get_args(Kind)}.")
        if not self.behaviours or not self.kinds or not self.templates:
            raise DataError("At least one behaviour, one kind and one template is needed.")
        if bad := [text for text in self.stimuli if not is_text(text)]:
            raise DataError(f"A stimulus is {bad[0]!r}; write what a user says.")
        if len(self.distinct_stimuli) < self.num_dialogues:
            raise DataError(
                f"{self.num_dialogues} dialogues of a behaviour are asked for, each with a "
                f"stimulus of its own, but there are {len(self.distinct_stimuli)} different "
                "stimuli. Give more, or lower num_dialogues."
            )
        behaviours = self.distinct_behaviours
        for name in self.filters.hidden_fields:
            if not any(name in behaviour.fields for behaviour in behaviours):
                raise DataError(f"The hidden field {name!r} is none of any behaviour.")

    @functools.cached_property
    def distinct_behaviours(self) -> list[LatentQABehaviour]:
        """Each sentence once."""
        return distinct(map(LatentQABehaviour.of, self.behaviours))

    @functools.cached_property
    def distinct_stimuli(self) -> list[str]:
        """Each stimulus once."""
        return list({normalised(text): text.strip() for text in reversed(self.stimuli)}.values())[
            ::-1
        ]

    def drawn_stimuli(self, behaviour: LatentQABehaviour) -> list[str]:
        """The stimuli that a behaviour meets, in order."""
        stimuli = self.distinct_stimuli
        count = min(len(stimuli), self.num_dialogues + self.spare_dialogues)
        return group_rng(self.seed, f"stimuli/{behaviour.label}", 0).sample(stimuli, count)

    def longest_chat(self, model: TracedModel) -> int:
        """Tokens of the longest chat that `model` is to reply to."""
        if self.max_prompt_tokens is not None:
            return self.max_prompt_tokens
        limit = model.context_length
        left = _MAX_PROMPT_TOKENS if limit is None else limit - self.max_new_tokens
        return min(_MAX_PROMPT_TOKENS, left)

    def template_kwargs(self) -> dict[str, Any]:
        """For the target's chat template."""
        return {"enable_thinking": False, **self.chat_template_kwargs}
