"""Components that nobody trained: random parts and a random importance network, bound to a model."""

import torch

import param_features as pf
from param_features.fit.components import NETWORKS, ComponentDictionary, Parts
from param_features.fitted import Fitted, Metrics
from param_features.gradients import build_engine
from param_features.params import ParamRecord
from param_features.problem import Question, read_model, read_problem

METRICS = {
    "l0": 2.5, "alive": 5.0, "rounded": 0.2, "unmasked": 0.0, "all_zero": 2.0, "control_svd_w": 0.5, "control_rotated": 0.21,
    "n_samples": 280.0, "n_held_out": 120.0,
}  # fmt: skip


def made_components(model, sizes: dict[str, int], tokens=None, *, inputs=None, net: str = "component", seed: int = 0):
    """Components of some matrices, so many of each; importances lie on both sides of 0 and 1."""
    chosen = read_model(model, list(sizes))
    problem = read_problem(chosen, tokens, inputs, divergence="kl", reference="mean")
    engine = build_engine(problem, lambda _: None)
    generator = torch.Generator().manual_seed(seed)
    views = {view.name: view for view in engine.subset.views}

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parts, dtype = {}, torch.get_default_dtype()
    for name, n in zip(views, sizes.values(), strict=True):
        (d_out, d_in), dtype = views[name].matrix_shape, views[name].tensor.dtype
        parts[name] = Parts(drawn(n, d_out).to(dtype) / d_out, drawn(n, d_in).to(dtype))
    shapes = {name: (each.n, each.V.shape[1]) for name, each in parts.items()}
    network = NETWORKS[net](shapes, 8, generator, frozenset()).to(dtype).requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.3 * drawn(*parameter.shape).to(parameter))
    held_out = problem.data.rows(slice(0, 12))
    with torch.no_grad():
        width = engine.adapter.run(*held_out.args, **held_out.kwargs).shape[-1]
    references = torch.full((1, width), 1 / width, dtype=torch.float64)
    fitted = Fitted(
        dictionary=ComponentDictionary(parts, network),
        question=Question(problem.divergence, "mean", references),
        params={name: ParamRecord.of(views[name], print) for name, print in engine.subset.fingerprint().items()},
        metrics=Metrics(METRICS),
        config={"method": "components", "seed": seed},
        examples=held_out,
        engine=engine,
    )
    return pf.ParamComponents.of(fitted)
