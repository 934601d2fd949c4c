"""Every error of the package.

One class per thing that can go wrong, so that a caller can catch exactly that thing. Each derives
from `AOToolkitError` and from the builtin that fits, and each message says what was given, what is
allowed and what to do next. `docs/errors.md` has one entry per class.
"""

from collections.abc import Sequence
from typing import Any


class AOToolkitError(Exception):
    """Base of all errors that the package raises on purpose."""


class BlockDiscoveryError(AOToolkitError, ValueError):
    """The decoder blocks could not be found, or reading them gives something else."""


class UnsupportedModelError(AOToolkitError, TypeError):
    """The object given as a model, or the state it is in, cannot be traced faithfully."""


class ModelNotFoundError(AOToolkitError, FileNotFoundError):
    """A path that looks local does not exist, or no model could be loaded from there."""


class LayerError(AOToolkitError, ValueError):
    """A layer that the model, or the activations, do not have."""


class PromptError(AOToolkitError, ValueError):
    """A prompt that cannot become token ids: empty, wrong types, unknown ids, bad chat."""


class ChatTemplateError(PromptError):
    """Chat messages were given to a tokenizer without a chat template."""


class ContextLengthError(AOToolkitError, ValueError):
    """The prompt is longer than the model's context."""


class PositionError(AOToolkitError, IndexError):
    """A position that the prompt, or the activations, do not have; or no position at all."""


class HookNotFiredError(AOToolkitError, RuntimeError):
    """A block whose output was asked for did not run."""


class NonFiniteError(AOToolkitError, ValueError):
    """Activations with NaN or infinity in them."""


class UnknownAdapterError(AOToolkitError, ValueError):
    """An adapter name that the model does not have."""


class AdapterLoadError(AOToolkitError, ValueError):
    """A folder that is no adapter, or an adapter that does not fit this base model."""


class AdapterStateError(AOToolkitError, RuntimeError):
    """The adapter that was asked for is not the one that would run."""


class RemoteError(AOToolkitError, ValueError):
    """A remote run that nnsight cannot do for this model or adapter."""


class IncompatibleActivationsError(AOToolkitError, ValueError):
    """Two sets of activations, or activations and tokens, that do not belong together."""


class CorruptedFileError(AOToolkitError, ValueError):
    """A file that is not, or no longer, what it says it is."""


class ContractError(AOToolkitError, ValueError):
    """An oracle's contract is absent, or a field of it is missing, unknown or not allowed."""


class VerificationError(AOToolkitError, ValueError):
    """An oracle checkpoint does not fit its contract, its base or its tokenizer.

    Attributes:
        checks: All that were made, those that passed too.
    """

    def __init__(self, message: str, checks: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


class QuestionError(PromptError):
    """A question, or an answer to score, is empty or holds a control token of the tokenizer."""


class PlaceholderError(AOToolkitError, ValueError):
    """The placeholder is not the one token that the contract names."""


class InjectionError(AOToolkitError, ValueError):
    """Vectors cannot be injected where they were to go."""


class GenerationError(AOToolkitError, ValueError):
    """An option of generation, or a list of choices, that an oracle cannot serve."""


class DataError(AOToolkitError, ValueError):
    """Data, or a setting of a source of examples, that no training example can be made of."""


class LoraTargetError(AOToolkitError, ValueError):
    """A model has no weights of the kind that LoRA was to adapt, or PEFT cannot adapt them."""


class ActivationCacheError(AOToolkitError, ValueError):
    """A cache of activations: absent, incomplete, too large, or of another base or layers."""


class RunMismatchError(AOToolkitError, ValueError):
    """The folder of a training run holds a run with other settings."""


class TrainingSettingsError(AOToolkitError, ValueError):
    """A setting, or an argument, that no oracle can be trained with."""


class CheckpointError(AOToolkitError, OSError):
    """A checkpoint of a training run cannot be read or written."""


class BatchTooLargeError(AOToolkitError, MemoryError):
    """A batch of a training run does not fit into memory."""


class SteeringError(AOToolkitError, ValueError):
    """A behaviour, a prompt or a setting that no target can be steered with."""


class NanoWeightsError(AOToolkitError, FileNotFoundError):
    """A part of the embedded models is not where it should be."""


class MixtureError(AOToolkitError, ValueError):
    """A training mixture that cannot be built: settings that contradict, or a source runs dry."""


class RecipeError(AOToolkitError, ValueError):
    """A recipe that cannot be used; the message names the file, the line and the key."""


class SweepError(AOToolkitError, ValueError):
    """A sweep that cannot be run, continued or applied to an oracle."""


class MissingExtraError(AOToolkitError, ImportError):
    """A package of an optional extra is not installed."""


class CalibrationError(AOToolkitError, ValueError):
    """Confidences that no calibration, or no threshold, can be made of."""


class PrecisionNotReachedError(CalibrationError):
    """No threshold on the confidence reaches the precision that was asked for."""


class ScoreError(AOToolkitError, ValueError):
    """Scores that a metric, an interval or a comparison cannot be made of."""


class EvalError(AOToolkitError, ValueError):
    """An item, arm or setting of an evaluation that contradicts itself or the model."""


class ArmNotApplicableError(EvalError):
    """An arm of an evaluation has nothing to say about items of this kind."""


class EvalLeakError(AOToolkitError, ValueError):
    """An evaluation in which the answer can be had otherwise than by reading activations."""


class UntrainedLayerWarning(UserWarning):
    """An oracle is asked about a layer that it was not trained on."""


class BrokenCheckpointWarning(UserWarning):
    """The newest checkpoint of a training run is broken, so an older one is used."""


class BrokenRecordWarning(UserWarning):
    """A line of an evaluation's results cannot be read, so its item is answered again."""


class LateBaseWarning(UserWarning):
    """A base of the embedded world holds what a prompt told it only where a reply needs it."""
