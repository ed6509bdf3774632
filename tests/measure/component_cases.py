"""Components of small models that nothing was trained for, with importances of which about half are 0."""

from dataclasses import dataclass

import torch
from torch import nn

from param_features.fit.components import ComponentDictionary, MaskedModel, PerSite, least_square_parts
from param_features.gradients import GradientEngine, build_engine, sites_of
from param_features.problem import Divergence, ModelInputs, read_model, read_problem


@dataclass(frozen=True)
class Case:
    model: nn.Module
    engine: GradientEngine
    divergence: Divergence
    data: ModelInputs
    dictionary: ComponentDictionary

    @property
    def masked_model(self) -> MaskedModel:
        return MaskedModel(self.engine, sites_of(self.engine))


def case_of(model, names, tokens=None, inputs=None, *, n=6, divergence="auto", **asked) -> Case:
    problem = read_problem(read_model(model, names), tokens, inputs, divergence=divergence, reference="sample", **asked)
    engine, generator = build_engine(problem, lambda _: None), torch.Generator().manual_seed(0)
    sites = sites_of(engine)
    parts = {
        site.name: least_square_parts(
            site.weight(), torch.randn(n, site.weight().shape[1], generator=generator).to(site.weight())
        )
        for site in sites
    }
    probe = MaskedModel(engine, sites)
    with probe.held():
        applied = probe.clean(problem.data.rows(slice(0, 2))).applied
    tables = frozenset(name for name, values in applied.items() if not values.is_floating_point())
    shapes = {name: (of.n, of.V.shape[1]) for name, of in parts.items()}
    net = PerSite(shapes, 8, generator, tables).to(sites[0].weight()).requires_grad_(False)
    for bias in list(net.weights)[3::4]:
        bias.zero_()
    return Case(model, engine, problem.divergence, problem.data, ComponentDictionary(parts, net))
