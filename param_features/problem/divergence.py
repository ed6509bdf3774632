"""How far an output lies from a reference: divergences as cotangents at the output, and the references themselves."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from param_features.errors import InputError, OutputError, SampleCountError, SettingError, nearest

Outputs = Float[Tensor, "sample d_output"]


class Divergence(ABC):
    """D(f, y_r) of each sample, and its gradient with respect to the output f.

    A reference y_r lives where `to_reference` maps outputs: probabilities for KL, outputs otherwise.
    """

    name: str
    unit: str

    @abstractmethod
    def value(self, output: Outputs, reference: Outputs) -> Float[Tensor, " sample"]:
        """D of each sample, in `unit`."""

    @abstractmethod
    def cotangent(self, output: Outputs, reference: Outputs) -> Outputs:
        """∂D/∂f of each sample."""

    def to_reference(self, output: Outputs) -> Outputs:
        """An output as a reference; itself unless the divergence compares something else."""
        return output


class CurvedDivergence(Divergence):
    """A divergence whose Hessian F in the output is known, whatever the reference: what the Hessian method needs."""

    @abstractmethod
    def curved(self, output: Outputs, change: Float[Tensor, "*more sample d_output"]) -> Tensor:
        """F · change, with F = ∂²D/∂f² at the output; `change` may have further axes in front."""


class KL(CurvedDivergence):
    """Kullback–Leibler divergence: KL(y_r ‖ softmax f), in nats; cotangent softmax(f) − y_r."""

    name = "kl"
    unit = "nats"

    def value(self, output: Outputs, reference: Outputs) -> Float[Tensor, " sample"]:
        """Σ y_r (log y_r − log softmax f); zero probabilities add nothing."""
        return functional.kl_div(output.log_softmax(-1), reference, reduction="none").sum(-1)

    def cotangent(self, output: Outputs, reference: Outputs) -> Outputs:
        """softmax(f) − y_r."""
        p = output.softmax(-1)
        return p - reference if p.requires_grad or p.dtype != reference.dtype else p.sub_(reference)

    def to_reference(self, output: Outputs) -> Outputs:
        """The softmax of the output: probabilities."""
        return output.softmax(-1)

    def curved(self, output: Outputs, change: Float[Tensor, "*more sample d_output"]) -> Tensor:
        """(diag(p) − ppᵀ) · change: the changes less their mean under p, weighted by p."""
        p = output.softmax(-1)
        return p * (change - (p * change).sum(-1, keepdim=True))


class SquaredError(CurvedDivergence):
    """Squared error: Σ (f − y_r)²; cotangent 2 (f − y_r)."""

    name = "se"
    unit = "squared error"

    def value(self, output: Outputs, reference: Outputs) -> Float[Tensor, " sample"]:
        """Σ (f − y_r)² over the numbers of the output, not their mean."""
        return (output - reference).square().sum(-1)

    def cotangent(self, output: Outputs, reference: Outputs) -> Outputs:
        """2 (f − y_r)."""
        return 2 * (output - reference)

    def curved(self, output: Outputs, change: Float[Tensor, "*more sample d_output"]) -> Tensor:
        """2 · change."""
        return 2 * change


class Sum(Divergence):
    """Σ f − Σ y_r: the first-order stand-in for squared error against a constant model; cotangent 1."""

    name = "sum"
    unit = "output units"

    def value(self, output: Outputs, reference: Outputs) -> Float[Tensor, " sample"]:
        """Sum of the output's entries less the reference's."""
        return (output - reference).sum(-1)

    def cotangent(self, output: Outputs, reference: Outputs) -> Outputs:
        """1 for every number of the output."""
        return torch.ones_like(output)


class CustomDivergence(Divergence):
    """A user's function of (output, reference), [sample d_output] each, to one scalar per sample; by autograd."""

    unit = "units of the given function"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take the divergence from `function`."""
        self.function = function
        self.name = getattr(function, "__name__", "custom")

    def value(self, output: Outputs, reference: Outputs) -> Float[Tensor, " sample"]:
        """D of each sample, as the function returns it.

        Raises:
            OutputError: It does not return one scalar per sample.
        """
        value = self.function(output, reference)
        if not isinstance(value, Tensor) or value.shape != output.shape[:1]:
            raise OutputError(
                f"The divergence {self.name!r} returned {tuple(getattr(value, 'shape', ())) or type(value).__name__} for "
                f"outputs {tuple(output.shape)}. It must return one scalar per sample, shape {tuple(output.shape[:1])}."
            )
        return value

    def cotangent(self, output: Outputs, reference: Outputs) -> Outputs:
        """The function's gradient at the output."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            return torch.autograd.grad(self.value(leaf, reference).sum(), leaf)[0]


_DIVERGENCES: dict[str, type[Divergence]] = {cls.name: cls for cls in (KL, SquaredError, Sum)}


def read_divergence(spec: str | Callable, *, is_logits: bool) -> Divergence:
    """The divergence of that name; `"auto"` takes KL for logits and squared error otherwise.

    Raises:
        SettingError: The name is unknown.
    """
    if callable(spec):
        return CustomDivergence(spec)
    if spec == "auto":
        return KL() if is_logits else SquaredError()
    if spec not in _DIVERGENCES:
        raise SettingError(
            f"divergence={spec!r} is unknown. Accepted: 'auto', {', '.join(map(repr, _DIVERGENCES))}, or a function of "
            f"(output, reference) to one scalar per sample; nearest: {nearest(str(spec), _DIVERGENCES)}."
        )
    return _DIVERGENCES[spec]()


REFERENCES = ("sample", "mean", "uniform", "label")


@dataclass(frozen=True)
class Reference:
    """What outputs are compared with.

    Attributes:
        kind: `"sample"` (another output drawn from the data; L3D's choice), `"mean"` (their mean), `"uniform"`, `"label"`
            (one-hot, drawn from the model's own softmax: spans the Fisher information), `"given"`, or `"pairs"` (outputs of
            corrupted prompts; in the fit each sample has that of its own partner, given beside it).
        pool: `"mean"`: the mean, [1 d_output]. `"given"`: the user's outputs, as references. At inference `"sample"`,
            `"label"` and `"pairs"` hold the n_references that activations average over. None while drawing from the batch.
    """

    kind: str
    pool: Float[Tensor, "n_references d_output"] | None = None

    def draw(self, divergence: Divergence, output: Outputs, generator: torch.Generator) -> Outputs:
        """One reference for each sample of a batch, drawn with `generator`.

        Raises:
            SampleCountError: Another sample is asked for and the batch holds one.
        """
        if self.pool is not None:
            return self.pool[self.choose(len(output), generator)].to(output)
        if self.kind == "uniform":
            return torch.full_like(output, 1 / output.shape[-1])
        if self.kind == "label":
            labels = torch.multinomial(output.float().softmax(-1).cpu(), 1, generator=generator).to(output.device)
            return torch.zeros_like(output).scatter_(1, labels, 1.0)
        which = self.choose(len(output), generator).to(output.device)
        return divergence.to_reference(output)[which]

    @property
    def is_drawn_from_outputs(self) -> bool:
        """Whether a reference is drawn with the outputs' own probabilities, rather than chosen by its number."""
        return self.pool is None and self.kind == "label"

    def choose(self, n_samples: int, generator: torch.Generator) -> Int[Tensor, " sample"]:
        """The number of each sample's reference: in the pool, or else of another sample of the batch.

        Raises:
            SampleCountError: Another sample is asked for and the batch holds one.
        """
        if self.pool is not None:
            return _integers(len(self.pool), n_samples, generator)
        if n_samples < 2:
            raise SampleCountError(
                "reference='sample' compares each sample with another of its batch, but the batch holds one. Give at least "
                "two inputs, or another reference."
            )
        return (torch.arange(n_samples) + 1 + _integers(n_samples - 1, n_samples, generator)) % n_samples

    def skip(self, n: int, d_output: int, generator: torch.Generator) -> None:
        """Draw as many random numbers as `draw` would for `n` samples."""
        if self.pool is None and self.kind == "label":
            torch.multinomial(torch.ones(n, d_output), 1, generator=generator)
        elif self.pool is not None or self.kind != "uniform":
            _integers(2, n, generator)


def _integers(high: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=generator)


def check_reference(spec: Any, divergence: Divergence) -> None:
    """Refuse a reference that is unknown or means nothing for the divergence.

    Raises:
        SettingError: The name is unknown, or it is a distribution and the divergence compares something else.
        InputError: It is a tensor without values.
    """
    if isinstance(spec, Tensor):
        if spec.is_meta:
            raise InputError("reference= is on the meta device: it has a shape but no values. Give outputs.")
        return
    if spec not in REFERENCES:
        raise SettingError(
            f"reference={spec!r} is unknown. Accepted: {', '.join(map(repr, REFERENCES))}, or a tensor of outputs "
            f"[d_output] or [n_references, d_output], or pairs of prompts; nearest: {nearest(str(spec), REFERENCES)}."
        )
    if spec in ("uniform", "label") and not isinstance(divergence, KL):
        raise SettingError(
            f"reference={spec!r} is a distribution over logits, but the divergence is {divergence.name!r}. Use "
            "'sample', 'mean' or your own outputs, or divergence='kl' if the outputs are logits."
        )


def check_curved(divergence: Divergence) -> CurvedDivergence:
    """The divergence itself, for a method that needs its Hessian in the output.

    Raises:
        SettingError: It has none, or none that is known.
    """
    if not isinstance(divergence, CurvedDivergence):
        curved = ", ".join(repr(name) for name, kind in _DIVERGENCES.items() if issubclass(kind, CurvedDivergence))
        raise SettingError(
            f"method='hessian' needs a divergence whose Hessian in the output is known, and {divergence.name!r} is none. "
            f"Accepted: {curved}; or use method='l3d', which needs gradients alone."
        )
    return divergence
