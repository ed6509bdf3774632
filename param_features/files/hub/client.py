"""huggingface-hub, imported when it is needed, and its errors under this library's names."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from param_features.errors import (
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubOfflineError,
    MissingExtraError,
    ParamFeaturesError,
    SettingError,
)

_LOG_IN = "log in with `hf auth login`, or give token="
_NAMED = (
    (
        ("GatedRepoError",),
        HubAccessError,
        f"asks its readers to accept conditions first. Accept them on its page, then {_LOG_IN}",
    ),
    (
        ("RepositoryNotFoundError",),
        HubNotFoundError,
        f"is not on the Hugging Face hub, or is private and not open to this caller. Check its name, and {_LOG_IN}",
    ),
    (("RevisionNotFoundError",), HubNotFoundError, "has no such revision. Give a branch, a tag or a commit that it has"),
    (
        ("RemoteEntryNotFoundError",),
        HubNotFoundError,
        "lacks a file of saved features. Shared features are config.json and features.safetensors at the top of a "
        "repository: check the name and the revision",
    ),
    (
        ("LocalEntryNotFoundError", "OfflineModeIsEnabled"),
        HubOfflineError,
        "was not reached on the Hugging Face hub, and is not in the cache. Check the connection and HF_HUB_OFFLINE",
    ),
    (("HFValidationError",), SettingError, "is no name that the hub accepts. Give 'owner/name'"),
)
_REFUSALS = {401: "no token, or a wrong one", 402: "payment is required", 403: "this token may not do that"}


def hub_library(module: str = "") -> Any:
    """Import huggingface-hub, or a module of it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(f"huggingface_hub.{module}" if module else "huggingface_hub")
    except ImportError as error:
        raise MissingExtraError(
            f"The Hugging Face hub needs huggingface-hub, and the import failed: {error}. Run: pip install "
            '"param_features[hf]".'
        ) from error


@contextmanager
def hub_errors(request: str) -> Iterator[None]:
    """Raise the hub's errors as this library's; `request` begins the message.

    Raises:
        HubNotFoundError: There is no such repository, revision or file.
        HubAccessError: The caller is not let in.
        HubOfflineError: The hub was not reached.
        HubError: It refuses otherwise.
        SettingError: It accepts no such name.
    """
    errors = hub_library("errors")
    try:
        yield
    except (*_known(errors), errors.HfHubHTTPError, errors.HTTPError) as error:
        kind, advice = _named(errors, error)
        raise kind(f"{request} {advice}. ({_reason(error)})") from error


def _known(errors: Any) -> dict[type[Exception], tuple[type[ParamFeaturesError], str]]:
    """What each of the hub's errors becomes, the most special first."""
    return {getattr(errors, name): (kind, advice) for names, kind, advice in _NAMED for name in names}


def _named(errors: Any, error: Exception) -> tuple[type[ParamFeaturesError], str]:
    """Return the error of this library, and what its message says after the request."""
    known = next((named for foreign, named in _known(errors).items() if isinstance(error, foreign)), None)
    if known is not None:
        return known
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return HubOfflineError, "was not reached on the Hugging Face hub. Check the connection, then try again"
    if status in _REFUSALS:
        return HubAccessError, f"is closed to this caller: {_REFUSALS[status]}. Check the name, and {_LOG_IN}"
    return HubError, f"could not be served: the Hugging Face hub answered with status {status}. Try again later"


def _reason(error: BaseException) -> str:
    """Quote the hub's own words in one line: those of the cause where it was hidden."""
    hidden = error.__cause__ if getattr(error, "response", None) is None else None
    reason = hidden or error
    return " ".join(str(getattr(reason, "server_message", None) or reason).split())[:300] or type(reason).__name__
