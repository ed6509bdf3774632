"""How layers store their matrices, and where a part of a fused one lies."""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from param_features.params.folds import unfold_matrix
from param_features.params.naming import class_names
from param_features.params.views import ParamView


def rows_of_part(view: ParamView) -> Int[Tensor, " d_out"]:
    """Which rows of the whole matrix are the part's."""
    whole = ParamView(view.name, view.owner, view.attribute, view.fold)
    d_out, d_in = whole.matrix_shape
    row = torch.arange(d_out, dtype=torch.float64).unsqueeze(1).expand(d_out, d_in)
    return view.to_matrix(view.layout.read(unfold_matrix(row, view.fold, whole.shape)))[:, 0].long()


def has_rows_in(owner: nn.Module) -> bool:
    """Whether the layer stores its matrix [d_in, d_out]: tables read by index, and transformers' Conv1D."""
    return isinstance(owner, nn.Embedding) or "transformers.Conv1D" in class_names(owner)
