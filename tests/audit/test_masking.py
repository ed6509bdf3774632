"""Audits by masks: planted components pass, wrong importances fail, and every number is that of explicit weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.audit import AuditSettings, refitted, run_audit, untrained
from param_features.audit.masking import ADVERSARY, ONE_BY_ONE, RANDOM, SINGULAR, TOGETHER, _candidate, masking_rows
from param_features.errors import FeatureMismatchError
from param_features.fit.components import ComponentDictionary, ImportanceNet, MaskedModel, Parts
from param_features.fitted import Fitted, Metrics
from param_features.gradients import sites_of
from param_features.intervene import outside_span
from param_features.measure import Candidate, MaskedRows, agreement_of
from param_features.params import ParamRecord
from param_features.problem import Question, read_inputs
from tests.measure.component_cases import case_of

W_K = "blocks.0.attn.W_K"
SMALL = AuditSettings(
    n_features=3, n_rows=4, n_top=3, steps=(0.001, 0.01), set_size=2, n_sets=2, n_deletions=2, n_starts=2, n_climbs=4
)


class Given(ImportanceNet):
    """Needed where the inner activation is not 0, of the component so many places further on."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, inner, applied):
        return {name: (values.roll(self.shift, -1) != 0).to(values) for name, values in inner.items()}


def fitted(case, dictionary=None) -> Fitted:
    fingerprint = case.engine.subset.fingerprint()
    return Fitted(
        dictionary=case.dictionary if dictionary is None else dictionary,
        question=Question(case.divergence, "sample", torch.zeros(1, 4, dtype=torch.float64)),
        params={view.name: ParamRecord.of(view, fingerprint[view.name]) for view in case.engine.subset.views},
        metrics=Metrics({}),
        config={},
        examples=case.data,
        engine=case.engine,
    )


@pytest.fixture(scope="module")
def planted():
    """Inputs of one coordinate each need the one column of W that reads it."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False).double()
    inputs = torch.eye(6, dtype=torch.float64).repeat(2, 1)[:9]
    return case_of(model, "weight", inputs=inputs, divergence="se")


def columns(case, shift: int = 0) -> ComponentDictionary:
    (site,) = case.masked_model.sites
    return ComponentDictionary({"weight": Parts(site.weight().T.contiguous(), torch.eye(6).double())}, Given(shift))


@pytest.fixture(scope="module")
def language(tiny_features, tiny_hooked, tiny_tokens):
    return replace(fitted(case_of(tiny_hooked, W_K, tiny_tokens[:6])), question=tiny_features.question)


class TestPlanted:
    def test_what_is_not_needed_is_free(self, planted):
        audit = run_audit(fitted(planted, columns(planted)), planted.data, SMALL, second=None, untrained=None)
        for claim in (ONE_BY_ONE, TOGETHER, ADVERSARY):
            assert audit[claim].value == pytest.approx(0, abs=1e-20)
            assert audit[claim].passed
        assert audit[ONE_BY_ONE].controls["random"] > 0.1
        assert audit[TOGETHER].controls[SINGULAR] > 0.01

    def test_wrong_importances_fail(self, planted):
        for row in masking_rows({"": fitted(planted, columns(planted, shift=1))}, planted.data, SMALL):
            assert row.passed is False, row

    def test_what_is_needed_everywhere_leaves_nothing_to_delete(self, planted):
        (site,) = planted.masked_model.sites
        parts = {"weight": Parts(torch.ones(1, 4).double(), torch.ones(1, 6).double())}
        row = masking_rows({"": fitted(planted, ComponentDictionary(parts, Given()))}, planted.data, SMALL)[0]
        assert row.name == ONE_BY_ONE and row.value is None and row.verdict == "not run"
        assert "random" not in row.controls


def test_one_by_one_is_the_weight_without_the_component_where_it_is_not_needed(tiny_hooked, tiny_tokens):
    """At the matrix next to the output a position's own weights show at this position alone."""
    name = "blocks.1.mlp.W_out"
    tokens = tiny_tokens[:2]
    case = case_of(tiny_hooked, name, tokens, n=2)
    question = Question(case.divergence, "uniform", torch.full((1, 20), 0.05, dtype=torch.float64))
    (row, *_) = masking_rows({"": replace(fitted(case), question=question)}, case.data, replace(SMALL, n_features=1))
    (view,), parts = case.engine.subset.views, case.dictionary.parts[name]
    model = case.masked_model
    with model.held():
        g = MaskedRows(model, case.divergence, case.data).candidate(case.dictionary).importances[name]
    density = (g > 0).double().mean((0, 1))
    chosen = int(torch.where((density > 0) & (density < 1), density, torch.inf).argmin())
    clean, before = tiny_hooked(tokens).log_softmax(-1), view.stored.detach().clone()
    with torch.no_grad():
        view.stored.sub_(view.from_matrix(torch.outer(parts.U[chosen], parts.V[chosen])))
        found = tiny_hooked(tokens).log_softmax(-1)
        view.stored.copy_(before)
    moved = (clean.exp() * (clean - found)).sum(-1).detach()
    is_needed = g[..., chosen] > 0
    assert row.value == pytest.approx(float(moved[~is_needed].mean() / moved[is_needed].mean()), rel=1e-6)


def test_directions_stand_for_the_weights_nearest_to_them(tiny_features, tiny_tokens):
    engine = tiny_features.engine
    inputs = read_inputs(engine.adapter, tiny_tokens[:4], None)
    needed = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    model = MaskedModel(engine, sites_of(engine))
    with model.held():
        candidate = _candidate(tiny_features, MaskedRows(model, tiny_features.divergence, inputs), needed)
    (view,) = engine.subset.views
    inside = view.to_matrix((view.tensor - outside_span(tiny_features.v_out, engine.subset)[W_K]).detach())
    torch.testing.assert_close(candidate.parts[W_K].sum().double(), inside, rtol=1e-5, atol=1e-7)
    rank = candidate.parts[W_K].n // 6
    assert torch.equal(candidate.importances[W_K][:, 3, ::rank] > 0, needed)
    assert torch.equal(candidate.importances[W_K][:, 3, rank - 1 :: rank] > 0, needed)


@pytest.fixture(scope="module")
def theirs(language, tiny_features):
    """Components, features beside them."""
    return run_audit(language, language.examples, SMALL, second=language, untrained=None, beside=[tiny_features])


class TestSideBySide:
    def test_components_beside_features(self, theirs):
        assert theirs.methods == ("components", "features", SINGULAR, RANDOM)
        for claim in (ONE_BY_ONE, TOGETHER, ADVERSARY):
            assert {"features", SINGULAR, RANDOM, "needed"} <= set(theirs[claim].controls)
        assert theirs["sign"].value is None and 0 <= theirs["sign"].controls["features"] <= 1
        assert "left out" in theirs["linearity"].meaning
        assert theirs["additivity"].limit == SMALL.most_gap and not theirs["additivity"].is_more_better
        assert theirs["stability"].value == pytest.approx(1)
        assert theirs["stability"].controls["random"] < 0.6

    def test_the_table_has_a_column_for_each_method(self, theirs):
        head, *lines = theirs.by_method.splitlines()
        assert head.split("  ")[0] == "" and all(name in head for name in theirs.methods)
        line = next(line for line in lines if line.startswith(TOGETHER))
        assert f"{theirs[TOGETHER].controls[SINGULAR]:.3g}" in line and f"{theirs[TOGETHER].value:.3g}" in line
        assert "–" in next(line for line in lines if line.startswith("sign"))

    def test_features_beside_components_have_the_same_numbers(self, theirs, language, tiny_features):
        mine = run_audit(tiny_features, language.examples, SMALL, second=None, untrained=None, beside=[language])
        for claim in (ONE_BY_ONE, TOGETHER, ADVERSARY):
            assert mine[claim].value == theirs[claim].controls["features"]
            assert mine[claim].controls["components"] == theirs[claim].value
        assert mine["sign"].value == theirs["sign"].controls["features"]

    def test_features_alone_have_the_rows_that_they_had(self, language, tiny_features):
        alone = run_audit(tiny_features, language.examples, SMALL, second=None, untrained=None)
        assert [row.name for row in alone.rows][-1] == "stability" and alone.methods == ()
        assert not {ONE_BY_ONE, TOGETHER, ADVERSARY} & {row.name for row in alone.rows}

    def test_other_weights_are_refused(self, language, planted):
        other = fitted(planted, columns(planted))
        with pytest.raises(FeatureMismatchError, match="Fit the same parameters of one model"):
            run_audit(language, language.examples, SMALL, second=None, untrained=None, beside=[other])

    def test_a_second_fit_of_features_is_refused(self, language, tiny_features):
        with pytest.raises(FeatureMismatchError, match='method="components" with another seed'):
            run_audit(language, language.examples, SMALL, second=tiny_features, untrained=None)


def test_agreement_is_of_whole_matrices_and_one_to_one():
    generator = torch.Generator().manual_seed(0)
    parts = Parts(torch.randn(5, 8, generator=generator), torch.randn(5, 9, generator=generator))
    order = torch.tensor([3, 1, 4, 0, 2])
    same = Parts(-2 * parts.U[order], parts.V[order])
    found = agreement_of({"a": parts}, {"a": same}, generator)
    assert found.best == pytest.approx(1) and found.matched == pytest.approx(1) and found.n == 5
    assert found.random_matched <= found.random_best < 0.6
    twice = agreement_of({"a": parts}, {"a": Parts(parts.U[:1], parts.V[:1])}, generator)
    assert twice.matched == pytest.approx(1 / 5) and twice.best > 1 / 5
    one_side = agreement_of({"a": parts}, {"a": Parts(parts.U, parts.V[order])}, generator)
    assert one_side.best < 0.9
    assert agreement_of({"a": Parts(parts.U[:0], parts.V[:0])}, {"a": parts}, generator).best == 0


def test_needed_parts_switched_off_at_no_positions_cost_nothing(planted):
    model = planted.masked_model
    with model.held():
        rows = MaskedRows(model, planted.divergence, planted.data)
        parts = columns(planted).parts
        off = Candidate(parts, {"weight": torch.ones(9, 1, 6, dtype=torch.float64)})
        assert rows.adversarial(off, (3,), torch.Generator().manual_seed(0))[3].mean < 1e-20


def test_components_are_fitted_again_with_another_seed_and_on_shuffled_weights(tiny_hooked, tiny_tokens, monkeypatch):
    monkeypatch.setattr("param_features.run.from_weights.component_metrics", lambda *_, **__: {})  # not asked here
    settings = pf.ComponentSettings(steps=2, batch_size=60)
    harvest = pf.HarvestSettings(n_examples=2)
    names = [W_K, "blocks.1.mlp.W_out"]
    call = {"method": "components", "fit": settings, "harvest": harvest, "progress": False}
    components = pf.decompose(tiny_hooked, names, tiny_tokens[:12], n_features=dict(zip(names, (2, 3), strict=True)), **call)
    again = refitted(components, tiny_tokens[:12], None, seed=1)
    assert isinstance(again.dictionary, ComponentDictionary)
    assert {name: parts.n for name, parts in again.dictionary.parts.items()} == dict(zip(names, (2, 3), strict=True))
    assert again.config["fit"] == components.config["fit"]
    blank = refitted(components, tiny_tokens[:12], None, model=untrained(tiny_hooked, 0), seed=1)
    small = replace(SMALL, n_features=1, n_climbs=1, n_starts=1)
    audit = components.audit(tiny_tokens[:2], second=again, untrained=blank, settings=small)
    assert "untrained" in audit[TOGETHER].controls
    row = audit["stability"]
    assert row.value is not None and 0 < row.controls["random"] < row.value
    assert "untrained" not in audit.methods
