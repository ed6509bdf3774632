"""How well a number tells one kind of sample from the others."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def auroc(numbers: Float[Tensor, "sample column"], is_positive: Bool[Tensor, " sample"]) -> Float[Tensor, " column"]:
    """Area under ROC of each column: the chance that a positive sample's number exceeds a negative one's, ties as half.

    Args:
        numbers: What ranks the samples, one ranking per column.
        is_positive: Which samples are to rank high; at least one is and one is not.
    """
    from scipy.stats import rankdata

    ranks = torch.as_tensor(rankdata(numbers.double().numpy(), axis=0))
    n_positive = int(is_positive.sum())
    above = ranks[is_positive].sum(0) - n_positive * (n_positive + 1) / 2
    return (above / (n_positive * (len(ranks) - n_positive))).to(numbers)
