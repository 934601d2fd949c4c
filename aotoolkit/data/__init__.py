"""Training examples for oracles."""

from aotoolkit.data.abstention import Abstention
from aotoolkit.data.behaviour_filters import LatentQAFilters
from aotoolkit.data.behaviours import LatentQABehaviour, read_behaviours
from aotoolkit.data.classification import Classification, OpenClassification
from aotoolkit.data.context_prediction import ContextPrediction
from aotoolkit.data.example import Example
from aotoolkit.data.example_file import read_examples
from aotoolkit.data.latentqa import LatentQA, load_latentqa
from aotoolkit.data.latentqa_maker import MadeLatentQA, make_latentqa
from aotoolkit.data.latentqa_request import LatentQARequest
from aotoolkit.data.mixture import BuiltMixture, Mixture, Part, Stage
from aotoolkit.data.on_policy import OnPolicyTexts, rollouts
from aotoolkit.data.source import LayerChoice, Source
from aotoolkit.data.split_qa import (
    SplitItem,
    SplitQA,
    read_split_qa,
    text_hardness,
    write_split_qa,
)
from aotoolkit.data.storage import ExampleDataset
from aotoolkit.data.table import read_labelled_texts
from aotoolkit.data.texts import TextSpec, read_texts
from aotoolkit.data.window import Window

__all__ = [
    "Abstention",
    "BuiltMixture",
    "Classification",
    "ContextPrediction",
    "Example",
    "ExampleDataset",
    "LatentQA",
    "LatentQABehaviour",
    "LatentQAFilters",
    "LatentQARequest",
    "LayerChoice",
    "MadeLatentQA",
    "Mixture",
    "OnPolicyTexts",
    "OpenClassification",
    "Part",
    "Source",
    "SplitItem",
    "SplitQA",
    "Stage",
    "TextSpec",
    "Window",
    "load_latentqa",
    "make_latentqa",
    "read_behaviours",
    "read_examples",
    "read_labelled_texts",
    "read_split_qa",
    "read_texts",
    "rollouts",
    "text_hardness",
    "write_split_qa",
]
