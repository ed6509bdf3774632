"""What a step along a feature does to the outputs, as the step grows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.intervene import deltas_of, weight_norm
from param_features.machine import public
from param_features.measure import read_effects
from param_features.plots.figures import COLOURS, laid_out, plotly
from param_features.problem import KL, ModelInputs, read_inputs

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHARES = (-0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)


@public
def steering(
    features: Fitted,
    feature: int,
    tokens: Any = None,
    *,
    inputs: Any = None,
    deltas: Sequence[float] | None = None,
    n_outputs: int = 6,
) -> "go.Figure":
    """Draw the outputs that move most against δ: their means at the last position, or over the inputs.

    Probabilities where the divergence is KL, the outputs themselves otherwise. Cost: a forward pass for each δ.

    Args:
        features: A fit with its model.
        feature: Which one.
        tokens: Prompts: what follows each is looked at.
        inputs: Instead of tokens, for modules that take none.
        deltas: Steps in units of the weights; shares of ‖W‖ up to 0.3 either way by default.
        n_outputs: Lines drawn.

    Raises:
        FeatureCountError: There is no such feature.
        SettingError: Fewer than two steps, or no line.
        NotBoundError: The features were loaded without a model.
        MissingExtraError: plotly is not installed.

    Source: after the intervention figures of L3D (arXiv 2504.00194).
    """
    go, engine = plotly(), features.bound_engine("steering")
    features.check_feature(feature)
    steps = sorted(deltas) if deltas is not None else [share * weight_norm(engine.subset) for share in _SHARES]
    if len(steps) < 2 or n_outputs < 1:
        raise SettingError(f"{len(steps)} steps and n_outputs={n_outputs}. Give two steps or more and a line at least.")
    is_kl = isinstance(features.divergence, KL)
    rows = engine.located(read_inputs(engine.adapter, tokens, inputs))
    values = mean_outputs(features, feature, rows, steps, is_kl=is_kl)
    most = (values.max(0).values - values.min(0).values).topk(min(n_outputs, values.shape[1])).indices.tolist()
    is_of_tokens = engine.per_position and engine.adapter.d_vocab in (None, values.shape[1])
    figure = go.Figure()
    for place, output in enumerate(most):
        name = engine.adapter.to_strings([output])[0] if is_of_tokens else f"output {output}"
        line = {"color": COLOURS[place % len(COLOURS)]}
        figure.add_trace(
            go.Scatter(x=steps, y=values[:, output].tolist(), name=repr(name)[1:-1], mode="lines+markers", line=line)
        )
    figure.add_vline(x=0, line_dash="dot", line_color="#8a8a8a")
    quantity = "mean probability" if is_kl else "mean output"
    title = f"Steering along feature {feature}: the outputs that move most, mean of {len(rows)}"
    return laid_out(figure, title, "δ, the step in units of the weights", quantity)


def mean_outputs(
    features: Fitted, feature: int, inputs: ModelInputs, steps: Sequence[float], *, is_kl: bool
) -> Float[Tensor, "step d_output"]:
    """Mean outputs at the rows' last samples after each step, as probabilities for KL."""
    engine = features.bound_engine("steering")
    changes = [deltas_of(features.v_out, {feature: step}, engine.subset) for step in steps]
    parts = [inputs.rows([row]) for row in range(len(inputs))] if engine.per_position else [inputs]

    def at_last_sample(before: Tensor, after: Tensor) -> Tensor:
        last = after[-1:] if engine.per_position else after
        return last.softmax(-1) if is_kl else last

    return torch.cat([read_effects(engine, part, changes, at_last_sample) for part in parts], 1).mean(1)
