"""Every exception that the library raises on purpose, and its kind of warning.

Each exception also inherits the builtin that a caller would catch without knowing this library. A message has three parts:
what was given, what would be accepted, what to do next.
"""

import difflib
from collections.abc import Iterable


class ParamFeaturesError(Exception):
    """Every error that this library raises on purpose is of this kind."""

    def __str__(self) -> str:
        """Return the message as written (a `KeyError` would print it quoted)."""
        return str(self.args[0]) if self.args else ""


class Notice(UserWarning):
    """A warning of this library's: what it did by itself, or found, changes the meaning of a number.

    `warnings.filterwarnings("ignore", category=pf.errors.Notice)` silences notices, `"error"` makes them exceptions.
    """


class UnknownParameterError(ParamFeaturesError, KeyError):
    """A parameter name, glob or regex matches nothing in the model."""


class UnknownHookError(ParamFeaturesError, KeyError):
    """The model has no hook point or submodule of that name."""


class EmptySelectionError(ParamFeaturesError, ValueError):
    """No parameter was asked for."""


class InputError(ParamFeaturesError, ValueError):
    """Tokens or inputs have the wrong type, shape or range."""


class OutputError(ParamFeaturesError, TypeError):
    """The model's output is neither a tensor nor an object with `.logits`."""


class SettingError(ParamFeaturesError, ValueError):
    """A setting lies outside what is accepted."""


class ArgumentError(SettingError, TypeError):
    """An argument does not exist, is missing, or is of another kind than accepted."""


class FeatureCountError(SettingError):
    """`n_features` or `l0` lies outside its range."""


class RankError(SettingError):
    """`rank` exceeds that of the largest chosen matrix."""


class SampleCountError(ParamFeaturesError, ValueError):
    """There are too few samples for the features asked for."""


class NonFiniteError(ParamFeaturesError, ValueError):
    """Weights, outputs or gradients hold NaN or infinity."""


class NoGradientError(ParamFeaturesError, ValueError):
    """A chosen parameter does not influence the output."""


class InferenceModeError(ParamFeaturesError, RuntimeError):
    """The call stands under `torch.inference_mode()`, which records no gradients."""


class ModelStateError(ParamFeaturesError, RuntimeError):
    """The model cannot be run as it is: on the meta device, spread over devices, or mixing the rows of a batch."""


class MemoryEstimateError(ParamFeaturesError, MemoryError):
    """The run would need more memory than it may use."""


class SourceError(ParamFeaturesError, OSError):
    """The model, data set or features of that name cannot be read."""


class HubError(SourceError):
    """The Hugging Face hub does not give or take what was requested."""


class HubNotFoundError(HubError):
    """The hub has no such repository, revision or file, or none that the caller may see."""


class HubAccessError(HubError):
    """The hub refuses the caller: no token, a wrong one, or one without the right to this repository."""


class HubOfflineError(HubError):
    """The hub was not reached, and the files that are needed are not in the cache."""


class DestinationError(SettingError, OSError):
    """Nothing can be written where it is to be: a folder stands for a file, or the other way round, or it is forbidden."""


class DiskFullError(ParamFeaturesError, OSError):
    """A disk has too little room for the files that are to be written."""


class StoreError(ParamFeaturesError, ValueError):
    """Saved features or gradients are unfinished, damaged, of an unknown format, or not those asked for."""


class FingerprintError(ParamFeaturesError, ValueError):
    """Saved features belong to other weights than the model's."""


class ExportError(ParamFeaturesError, ValueError):
    """The features cannot be expressed in the format of the other library."""


class FeatureMismatchError(ParamFeaturesError, ValueError):
    """Two fits that are to be compared are of different parameters."""


class SearchError(ParamFeaturesError, ValueError):
    """No step along the features brings the divergence to where it was wanted."""


class ConvergenceError(ParamFeaturesError, RuntimeError):
    """The chains of samples have not settled, so that their mean is no estimate."""


class ToyError(ParamFeaturesError, RuntimeError):
    """No training run of a toy gave a model that holds every planted feature."""


class NotBoundError(ParamFeaturesError, RuntimeError):
    """The features were loaded without a model, and the call needs one."""


class AdapterError(ParamFeaturesError, TypeError):
    """No adapter recognises the model, or the adapter lacks what the call needs."""


class RegistryError(ParamFeaturesError, KeyError):
    """A registry key is unknown or already taken."""


class MissingExtraError(ParamFeaturesError, ImportError):
    """An optional library is not installed; the message names the `pip install` that brings it."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """List the known names that are most like `name`, quoted and joined; "none" without any. Case counts for nothing."""
    spellings: dict[str, list[str]] = {}
    for candidate in known:
        spellings.setdefault(candidate.casefold(), []).append(candidate)
    close = difflib.get_close_matches(name.casefold(), list(spellings), n=n, cutoff=0.4)
    return ", ".join(repr(candidate) for like in close for candidate in spellings[like]) or "none"
