"""`targets=`: where components are looked for, while the weights stay as they are everywhere else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from param_features.errors import InputError, SettingError
from param_features.problem.arguments import ModelInputs


def with_targets(tokens: Any, targets: Any) -> tuple[Any, Tensor]:
    """The texts or rows with those of the targets after them, where these are given so; and which are targets.

    Args:
        tokens: As the user gave them.
        targets: Truth values [batch] or [batch, pos]; or texts, or rows of ids, beside a list of such.

    Raises:
        SettingError: It is neither.
    """
    if isinstance(targets, Tensor):
        if targets.dtype != torch.bool or targets.dim() not in (1, 2):
            raise SettingError(f"targets= is {targets.dtype} of shape {tuple(targets.shape)}. {_ACCEPTED}")
        return tokens, targets
    if not _is_list(targets) or not len(targets) or not _is_list(tokens):
        kinds = f"of type {type(targets).__name__} beside tokens= of type {type(tokens).__name__}"
        raise SettingError(f"targets= is {kinds}. {_ACCEPTED}")
    return [*tokens, *targets], torch.arange(len(tokens) + len(targets)) >= len(tokens)


_ACCEPTED = (
    "Accepted: truth values of shape [batch] or [batch, pos], one for each row or position of tokens= (or inputs=); or a "
    "list of texts beside tokens= that are a list of texts, which are then all other inputs."
)


def targeted(inputs: ModelInputs, targets: Tensor) -> ModelInputs:
    """The inputs with their targets marked.

    Raises:
        InputError: The truth values are of another shape, or mark nothing, or everything.
    """
    shapes = [(len(inputs),), (len(inputs), inputs.n_pos)]
    if tuple(targets.shape) not in shapes:
        raise InputError(
            f"targets= has shape {tuple(targets.shape)}. These inputs need {list(shapes[0])} or {list(shapes[1])}. Rows "
            "that positions= leaves out do not count."
        )
    marked = targets if targets.dim() == 2 else targets.unsqueeze(1)
    is_real = True if inputs.mask is None or marked.shape != inputs.mask.shape else inputs.mask.to(marked.device)
    n_marked = int((marked & is_real).sum())
    if not n_marked or bool(marked.all()):
        raise InputError(
            f"targets= marks {'everything' if n_marked else 'no real position'}. Mark some of the inputs, and leave others "
            "unmarked, on which the weights stay as they are."
        )
    return replace(inputs, targets=marked.to(inputs.tensors[0].device))


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)
