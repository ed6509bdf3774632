"""How much alike the samples are on which a feature is strongest."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.machine import typed


@typed
def purity(is_top: Bool[Tensor, "sample feature"], labels: Int[Tensor, " sample"]) -> Float[Tensor, " feature"]:
    """The share of each feature's top samples that bear their commonest label.

    Args:
        is_top: Where each feature's top samples lie.
        labels: One for each sample, such as its token; negative for none, and left out.

    Returns:
        0 to 1; NaN for a feature whose top samples bear no label.
    """
    feature, sample = is_top.T.nonzero(as_tuple=True)
    label = labels[sample]
    feature, label = feature[label >= 0], label[label >= 0]
    n_features, n_labels = is_top.shape[1], int(labels.max()) + 1 if labels.numel() else 1
    pairs, counts = (feature * max(1, n_labels) + label).unique(return_counts=True)
    commonest = torch.zeros(n_features, dtype=counts.dtype)
    commonest.scatter_reduce_(0, pairs // max(1, n_labels), counts, "amax")
    return commonest / torch.bincount(feature, minlength=n_features)
