"""What components and importances are trained by, and the masks that are drawn for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.fit.components.adversary import Sources
from param_features.fit.components.batch import StepBatch
from param_features.fit.components.gates import masks_of
from param_features.fit.components.passes import Masks
from param_features.problem import Divergence

Importances = Mapping[str, Float[Tensor, "row _pos _component"]]

_EPS = 1e-8
"""Keeps the slope of (g + ε)^p finite at 0, where p is below 1."""


@dataclass(frozen=True)
class Distance:
    """D of outputs under masks from the model's own, of each sample; for squared error the mean over an output's numbers."""

    divergence: Divergence

    def __call__(
        self, output: Float[Tensor, "sample d_output"], clean: Float[Tensor, "sample d_output"]
    ) -> Float[Tensor, " sample"]:
        """Of each sample, in the divergence's unit."""
        if self.divergence.name == "kl":
            ours = clean.log_softmax(-1)  # the entropy of the model's own output, without the care for zeros
            return (ours.exp() * (ours - output.log_softmax(-1))).sum(-1)
        value = self.divergence.value(output, self.divergence.to_reference(clean))
        return value / output.shape[1] if self.divergence.name == "se" else value


def faithfulness(remainders: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Σ‖Δ‖² over the number of entries."""
    return torch.stack([rest.square().sum() for rest in remainders.values()]).sum() / sum(
        rest.numel() for rest in remainders.values()
    )


def importance_penalty(importances: Importances, p: float, batch: StepBatch) -> Float[Tensor, ""]:
    """Mean over the batch's real positions of Σ_c (g + ε)^p, summed over sites; this process's summand of it."""
    costs = [batch.over_real(name, (g + _EPS).pow(p)).sum() / batch.n_real[name] for name, g in importances.items()]
    return torch.stack(costs).sum()


def frequency_penalty(importances: Importances, p: float, batch: StepBatch) -> Float[Tensor, ""]:
    """Σ_c s_c log₂(1 + s_c) over the number of real positions, s_c = Σ (g_c + ε)^p over the batch, summed over sites.

    Where processes share the batch, each has the whole sum, and its gradient at its own positions.
    """
    costs = []
    for name, g in importances.items():
        total = batch.total(batch.over_real(name, (g + _EPS).pow(p)).sum(0))
        costs.append((total * torch.log2(1 + total)).sum() / batch.n_real[name])
    return torch.stack(costs).sum()


def drawn_sources(importances: Importances, generator: torch.Generator, n_rows: int | None = None) -> dict[str, Tensor]:
    """Sources between 0 and 1, uniformly, for the importances' rows or more; the last of each site is Δ's."""
    return {
        name: torch.rand(n_rows or len(g), g.shape[1], g.shape[2] + 1, generator=generator, dtype=g.dtype).to(g.device)
        for name, g in importances.items()
    }


def masks_from(importances: Importances, sources: Sources) -> Masks:
    """Masks of components and of Δ, whose importance is 0."""
    return Masks(
        {name: masks_of(g, sources[name][..., :-1]) for name, g in importances.items()},
        {name: source[..., -1] for name, source in sources.items()},
    )


def routed(sources: Sources, is_routed: Mapping[str, Bool[Tensor, "row _pos"]]) -> dict[str, Tensor]:
    """The sources at the positions where a site is routed through its masks, 1 elsewhere: there all stays whole."""
    return {
        name: source.masked_fill(~is_routed[name].to(source.device).unsqueeze(-1), 1.0) for name, source in sources.items()
    }


def one_site(sources: Sources, chosen: str) -> dict[str, Tensor]:
    """The sources of one site, all others whole."""
    return {name: source if name == chosen else torch.ones_like(source) for name, source in sources.items()}


def random_subset(sources: Sources, generator: torch.Generator) -> dict[str, Tensor]:
    """The sources of a random number of sites, from 1 to all, drawn at every position, the others whole.

    Where sites differ in their positions, it is drawn for every row.
    """
    shapes = {name: tuple(source.shape[:-1]) for name, source in sources.items()}
    rows = next(iter(shapes.values()))[0]
    pos = next(iter(shapes.values()))[1] if len(set(shapes.values())) == 1 else 1
    order = torch.rand(len(shapes), rows, pos, generator=generator, dtype=torch.float32).argsort(0)
    n_chosen = torch.randint(1, len(shapes) + 1, (rows, pos), generator=generator)
    is_chosen = order < n_chosen
    return routed(sources, {name: is_chosen[k].expand(shape) for k, (name, shape) in enumerate(shapes.items())})


def side_by_side(all_masks: list[Masks]) -> Masks:
    """Masks of several passes as those of one, its rows after each other."""
    if len(all_masks) == 1:
        return all_masks[0]
    names = all_masks[0].components
    return Masks(
        {name: torch.cat([masks.components[name] for masks in all_masks]) for name in names},
        {name: torch.cat([masks.remainders[name] for masks in all_masks]) for name in names},
    )
