"""Whose positions a matrix is applied at: padding is counted at none, samples alone have a D, masks come back when asked."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from param_features.errors import AdapterError, SettingError
from param_features.fit.components import ComponentDictionary, ComponentSettings, ComponentTrainer, MaskedModel, PerSite
from param_features.gradients import build_engine, sites_of
from param_features.problem import Question, read_model, read_problem
from tests.adapters.zoo import hf_gpt2
from tests.families import FAMILIES
from tests.masked import masked_case
from tests.models import integers, normal, randomised

T5 = [
    "encoder.block.0.layer.0.SelfAttention.k.weight",
    "decoder.block.0.layer.1.EncDecAttention.q.weight",
    "decoder.block.0.layer.1.EncDecAttention.k.weight",
    "decoder.block.0.layer.2.DenseReluDense.wi.weight",
]


def engine_of(model, params, *, tokens=None, inputs=None, divergence="auto", **settings):
    problem = read_problem(read_model(model, params), tokens, inputs, divergence=divergence, reference="sample", **settings)
    return build_engine(problem, lambda _: None), problem


def family(name):
    return next(each for each in FAMILIES if each.name == name)


def runs(*lengths, width=5):
    return (torch.arange(width) < torch.tensor(lengths).unsqueeze(1)).long()


@pytest.fixture(scope="module")
def t5():
    pytest.importorskip("transformers")
    return family("T5").model()


def padded_pairs(n_encoder: int):
    return {
        "input_ids": integers(20, 3, n_encoder), "attention_mask": runs(5, 3, 4, width=n_encoder),
        "decoder_input_ids": integers(20, 3, 5), "decoder_attention_mask": runs(2, 5, 3),
    }  # fmt: skip


@pytest.mark.parametrize("n_encoder", [5, 7])
def test_an_encoders_padding_is_its_own(t5, n_encoder):
    """Even where it has as many positions as the decoder."""
    model, names = t5, T5
    inputs = padded_pairs(n_encoder)
    engine, problem = engine_of(model, names, inputs=inputs)
    masked = MaskedModel(engine, sites_of(engine))
    with masked.held():
        clean = masked.clean(problem.data)
    for name in names:
        of_encoder = name.startswith("encoder") or name.endswith("EncDecAttention.k.weight")
        expected = inputs["attention_mask" if of_encoder else "decoder_attention_mask"].bool()
        assert torch.equal(clean.real[name], expected), name
        assert (name in clean.aligned) != of_encoder


def test_a_sample_has_the_largest_importance_of_an_encoder(t5):
    model, names = t5, T5
    engine, problem = engine_of(model, names[:2], inputs=padded_pairs(5))
    case = masked_case(model, names[:2], inputs=padded_pairs(5))
    shapes = {name: (parts.n, parts.V.shape[1]) for name, parts in case.parts.items()}
    net = randomised(PerSite(shapes, 8, torch.Generator().manual_seed(0), frozenset()).double()).requires_grad_(False)
    dictionary = ComponentDictionary(case.parts, net)
    by_site, _ = dictionary.by_site(engine, problem.data)
    question = Question(problem.divergence, "mean", torch.full((1, 20), 0.05, dtype=torch.float64))
    found = dictionary.read(engine, question, problem.data).activations
    largest = by_site[names[0]].max(1, keepdim=True).values.expand(-1, 5, -1)
    is_sample = problem.data.mask.unsqueeze(-1)
    assert torch.equal(found[..., :3], largest * is_sample) and torch.equal(found[..., 3:], by_site[names[1]] * is_sample)
    assert not by_site[names[0]][~padded_pairs(5)["attention_mask"].bool()].any()


def test_one_network_for_matrices_at_different_positions_is_refused(t5):
    model, names = t5, T5
    for n_encoder in (5, 7):
        engine, problem = engine_of(model, names[:2], inputs=padded_pairs(n_encoder))
        settings = ComponentSettings(steps=1, importance="model")
        with pytest.raises(SettingError, match="importance='model' reads the inputs of all matrices at the same position"):
            trainer_of(engine, problem, settings)


def trainer_of(engine, problem, settings):
    counts = dict.fromkeys(engine.subset.names, 3)
    generator = torch.Generator().manual_seed(0)
    return ComponentTrainer(engine, problem.divergence, problem.data, counts, settings, generator)


def test_padded_sound_is_refused_where_it_is_not_known_what_is_padding():
    pytest.importorskip("transformers")
    model, mask = family("wav2vec 2.0, CTC").model(), torch.ones(3, 96, dtype=torch.long)
    mask[1, 64:] = 0
    given = {"input_values": normal(3, 96), "attention_mask": mask}
    convolution = "wav2vec2.feature_extractor.conv_layers.0.conv.weight"
    projection = "wav2vec2.encoder.layers.0.attention.k_proj.weight"
    engine, problem = engine_of(model, [projection], inputs=given)
    masked = MaskedModel(engine, sites_of(engine))
    with masked.held():
        assert masked.clean(problem.data).real[projection].sum(1).tolist() == [6, 4, 6]
    engine, problem = engine_of(model, [convolution], inputs=given)
    masked = MaskedModel(engine, sites_of(engine))
    with masked.held(), pytest.raises(AdapterError, match=rf"'{convolution}' is applied at 24 positions .*is not known"):
        masked.clean(problem.data)


@pytest.mark.parametrize("positions", ["last", 1, lambda ids: ids > 9])
def test_a_distance_is_of_samples_alone(positions):
    pytest.importorskip("transformers")
    model, tokens = hf_gpt2(), integers(20, 4, 6)
    engine, problem = engine_of(model, "transformer.h.0.mlp.c_fc.weight", tokens=tokens, positions=positions)
    whole = masked_case(model, "transformer.h.0.mlp.c_fc.weight", tokens=tokens)
    masked = MaskedModel(engine, sites_of(engine))
    with masked.held(), torch.no_grad():
        found = masked.masked(problem.data, whole.parts, whole.masks(), whole.remainders)
    is_sample = problem.data.sample_mask
    assert 0 < int(is_sample.sum()) < 24
    assert torch.equal(found, whole.run(whole.masks()).unflatten(0, (4, 6))[is_sample])
    trainer = trainer_of(engine, problem, ComponentSettings(steps=2))
    with trainer.model.held():
        assert all(torch.tensor(list(trainer.step().distances.values())).isfinite().all() for _ in range(2))


class Checkpointed(nn.Module):
    """Runs its layer again in every backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.is_on = nn.Linear(4, 6), nn.Linear(6, 3), False

    def forward(self, x):
        run = lambda x: self.second(torch.tanh(self.first(x)))  # noqa: E731
        return checkpoint(run, x, use_reentrant=False) if self.is_on else run(x)


def test_layers_that_run_again_in_the_backward_pass_meet_the_masks_of_their_own_pass():
    """Two passes are pending at a time, with a clean one between, and each has the gradient that it has without."""
    model = randomised(Checkpointed().double())
    case = masked_case(model, ["first.weight", "second.weight"], inputs=normal(3, 5, 4))

    def gradients(is_on):
        model.is_on = is_on
        masks = [case.masks(seed=seed) for seed in (1, 2)]
        leaves = [mask.requires_grad_() for each in masks for mask in each.components.values()]
        with case.model.held():
            outputs = [case.model.masked(case.data, case.parts, each, case.remainders) for each in masks]
            case.model.clean(case.data)
            case.model.masked(case.data, case.parts, case.masks(seed=3), case.remainders)
            return torch.autograd.grad(sum(output.square().sum() for output in outputs), leaves)

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision(dtype):
    """Components lie in float32; ones leave every bit, and masks act as on a model in float32 up to rounding."""
    pytest.importorskip("transformers")
    names, tokens = ["transformer.h.0.attn.c_attn.weight[k]", "transformer.h.1.mlp.c_fc.weight"], integers(20, 2, 5)
    half = masked_case(hf_gpt2(dtype=dtype), names, tokens=tokens)
    full = masked_case(hf_gpt2(dtype=dtype).float(), names, tokens=tokens)
    assert half.clean.output.dtype == torch.float32
    assert all(parts.U.dtype == torch.float32 for parts in half.parts.values())
    assert torch.equal(half.run(half.ones()), half.clean.output)
    effect = full.run(full.masks()) - full.clean.output
    gap = half.run(half.masks()) - half.clean.output - effect
    assert gap.norm() < (0.03 if dtype == torch.bfloat16 else 0.005) * effect.norm()


def test_a_model_in_training_mode_is_read_in_evaluation_mode():
    pytest.importorskip("transformers")
    model, tokens = hf_gpt2(resid_pdrop=0.5), integers(20, 2, 5)
    still = masked_case(model.eval(), ["transformer.h.0.mlp.c_fc.weight"], tokens=tokens)
    expected = still.run(still.masks())
    model.train()
    before = torch.get_rng_state()
    assert torch.equal(still.run(still.masks()), expected)
    assert model.training and torch.equal(torch.get_rng_state(), before)
