"""Steering a target by an oracle's gradients."""

from aotoolkit.steering.behaviour import QUESTIONS, Behaviour, QuestionAnswer, describe_behaviour
from aotoolkit.steering.estimate import SteeringEstimate, estimate
from aotoolkit.steering.result import LossPoint, SteeringResult
from aotoolkit.steering.steering import steer
from aotoolkit.steering.vector import SteeringVector

__all__ = [
    "QUESTIONS",
    "Behaviour",
    "LossPoint",
    "QuestionAnswer",
    "SteeringEstimate",
    "SteeringResult",
    "SteeringVector",
    "describe_behaviour",
    "estimate",
    "steer",
]
