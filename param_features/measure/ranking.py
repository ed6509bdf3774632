"""How well a number tells one kind of sample from the others."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def auroc(numbers: Float[Tensor, "sample column"], is_positive: Bool[Tensor, "sample ..."]) -> Float[Tensor, "... column"]:
    """Area under ROC of each column: the chance that a positive sample's number exceeds a negative one's, ties as half.

    Cost: one ranking per column, whatever the number of labels; columns that lie in one piece are ranked twice as fast.

    Args:
        numbers: What ranks the samples, one ranking per column.
        is_positive: Which samples are to rank high, for one label or several.

    Returns:
        0 to 1; NaN for a label that every sample has or none.
    """
    from scipy.stats import rankdata

    ranks = torch.as_tensor(rankdata(numbers.double().numpy(), axis=0))
    positive = is_positive.movedim(0, -1).double()
    n_positive = positive.sum(-1, keepdim=True)
    above = positive @ ranks - n_positive * (n_positive + 1) / 2
    return (above / (n_positive * (len(ranks) - n_positive))).to(numbers)
