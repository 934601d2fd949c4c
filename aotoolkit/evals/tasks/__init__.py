"""What can be recovered from a model's activations: one class a task."""

from aotoolkit.evals.tasks.base import PromptTask
from aotoolkit.evals.tasks.classification import Predicate, PredicateClassification
from aotoolkit.evals.tasks.generative import GenerativeQA, TextQuestion
from aotoolkit.evals.tasks.hidden_prompt import HiddenPrompt, HiddenSystemPrompt
from aotoolkit.evals.tasks.model_diffing import ModelDiffing
from aotoolkit.evals.tasks.persona_qa import Person, PersonaQA, PersonaYesNo
from aotoolkit.evals.tasks.prompt_files import (
    read_hidden_prompts,
    read_lines,
    read_personas,
    read_predicate,
    read_published_predicates,
    read_questions,
    read_relation,
    read_text_questions,
)
from aotoolkit.evals.tasks.relations import Mention, Relation, RelationExtraction
from aotoolkit.evals.tasks.secret_constraint import SecretSideConstraint
from aotoolkit.evals.tasks.splice import SpliceGroup, StateNotTokens
from aotoolkit.evals.tasks.taboo import Taboo
from aotoolkit.evals.tasks.user_trait import UserTrait
from aotoolkit.evals.tasks.vagueness import KnownTruth, Vagueness

__all__ = [
    "GenerativeQA",
    "HiddenPrompt",
    "HiddenSystemPrompt",
    "KnownTruth",
    "Mention",
    "ModelDiffing",
    "Person",
    "PersonaQA",
    "PersonaYesNo",
    "Predicate",
    "PredicateClassification",
    "PromptTask",
    "Relation",
    "RelationExtraction",
    "SecretSideConstraint",
    "SpliceGroup",
    "StateNotTokens",
    "Taboo",
    "TextQuestion",
    "UserTrait",
    "Vagueness",
    "read_hidden_prompts",
    "read_lines",
    "read_personas",
    "read_predicate",
    "read_published_predicates",
    "read_questions",
    "read_relation",
    "read_text_questions",
]
