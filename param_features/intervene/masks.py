"""Running a model under masks of its components: an addition at each layer's output, the weights as they are."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import InputError, SettingError
from param_features.fit.components import ComponentDictionary
from param_features.gradients import GradientEngine, MatrixSite, acting_on, following, sites_of
from param_features.intervene.late_backward import refusing_late_backward
from param_features.machine import full_precision

SiteMasks = Mapping[str, Float[Tensor, "row _pos _component"]]
"""By matrix, at every position of some rows."""


def masks_from_importances(
    importances: SiteMasks, threshold: float | None, kept: Float[Tensor, " component"]
) -> dict[str, Float[Tensor, "row _pos _component"]]:
    """Importances, or 1 where they are above a threshold and 0 elsewhere; 0 for components that are not kept.

    Raises:
        SettingError: The threshold is no number.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise SettingError(f"threshold={threshold} must be a number: 0 keeps what is needed at all, -1 everything.")
    masks, start = {}, 0
    for name, g in importances.items():
        own = kept[start : start + g.shape[2]].to(g)
        masks[name] = (g if threshold is None else (g > threshold).to(g)) * own
        start += g.shape[2]
    return masks


@contextmanager
def under_masks(
    engine: GradientEngine, dictionary: ComponentDictionary, masks: SiteMasks, *, has_remainder: bool
) -> Iterator[None]:
    """Run the model on the masks' rows with its components masked.

    Cost: two small products a matrix, and without Δ one of W's size.

    Raises:
        InputError: Inside the block, the model is run on other rows, or on a part of their positions.
    """
    now = following(engine)
    sites, n_rows = sites_of(now), len(next(iter(masks.values())))

    def act(site: MatrixSite, source: Tensor, output: Tensor) -> Tensor:
        with full_precision(), torch.inference_mode(False):
            source = source.clone() if source.is_inference() else source
            mask, parts = masks[site.name].to(output.device), dictionary.parts[site.name]
            is_as_many = len(source) in (n_rows, mask.shape[:2].numel())
            laid_out = site.applied(source, output, n_rows) if is_as_many else None
            if laid_out is None or laid_out.shape[:2] != mask.shape[:2]:
                raise InputError(
                    f"The masks are for {tuple(mask.shape[:2])} rows and positions of {site.name!r}, and the model is run "
                    "on others. Run it on the inputs that masked() was given, whole and without a cache."
                )
            remainder = None if has_remainder else parts.remainder(site.weight())
            off = None if has_remainder else mask.new_zeros(mask.shape[:2])
            return site.added(parts.change(laid_out, mask, remainder, off), source, output, n_rows)

    with refusing_late_backward(now.adapter.module, {}), acting_on(sites, act):
        yield
