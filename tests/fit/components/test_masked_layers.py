"""Masked components at every kind of layer equal masked matrices, position by position; what has none is refused by name."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from param_features.errors import AdapterError, ParamFeaturesError
from param_features.fit.components import MaskedModel
from param_features.gradients import MatrixSite, sites_of
from tests.adapters.zoo import hf_gpt2, hf_llama, hooked
from tests.families import FAMILIES
from tests.families.modules import First, OwnExperts, Reused, Tied
from tests.masked import masked_case
from tests.models import Between, built, hooked_transformer, integers, normal
from tests.oracle import case_of

CONV1D = partial(nn.Conv1d, 2, 4, 3, stride=2, dilation=2, padding=2)
CONV2D = partial(nn.Conv2d, 2, 4, 3, stride=2, dilation=2, padding=(2, 1))
PADDINGS = ("zeros", "reflect", "replicate", "circular")
LAYERS = {
    "Linear": (lambda: nn.Linear(4, 3), normal(3, 4)),
    "Linear on sequences": (lambda: nn.Linear(4, 3), normal(3, 5, 4)),
    "Linear on grids": (lambda: nn.Linear(4, 3), normal(3, 5, 2, 4)),
    "Embedding": (lambda: nn.Embedding(6, 4), integers(6, 3, 5)),
    "Embedding with padding at 0": (lambda: nn.Embedding(6, 4, padding_idx=0), integers(3, 3, 5)),
    "Embedding with padding at 2": (lambda: nn.Embedding(6, 4, padding_idx=2), integers(3, 3, 5)),
    **{f"Conv1d, {mode}": (partial(CONV1D, padding_mode=mode), normal(3, 2, 11)) for mode in PADDINGS},
    **{f"Conv2d, {mode}": (partial(CONV2D, padding_mode=mode), normal(3, 2, 7, 8)) for mode in PADDINGS},
    "Conv1d, same": (lambda: nn.Conv1d(2, 4, 3, padding="same", dilation=2), normal(3, 2, 11)),
    "Conv2d, same": (lambda: nn.Conv2d(2, 4, (3, 1), padding="same"), normal(3, 2, 7, 8)),
    "Conv2d, one pixel": (lambda: nn.Conv2d(2, 4, 3), normal(3, 2, 3, 3)),
}


def assert_is_explicit(case, *explicit):
    assert torch.equal(case.run(case.ones()), case.clean.output)
    for by, varies in ((case.by_rows, False), *((each, True) for each in explicit)):
        masks = case.masks(varies=varies)
        found, expected = case.run(masks), by(masks)
        effect = (expected - case.clean.output).norm()
        assert effect > 0.01 * case.clean.output.norm()
        assert (found - expected).norm() <= 1e-9 * effect


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name, monkeypatch):
    """Its own layout is known: nothing is differentiated for it."""
    monkeypatch.setattr(MatrixSite, "_by_transpose", None)
    layer, inputs = LAYERS[name]
    case = masked_case(built(Between(layer())), inputs=inputs)
    assert case.names == ["layer.weight"]
    assert_is_explicit(case, case.by_positions)


@pytest.mark.parametrize("name", ["Linear", "Embedding with padding at 0", "Conv2d, circular"])
def test_a_layout_that_is_not_known_is_found_by_the_rules_transpose(name, monkeypatch):
    layout = MatrixSite._layout
    monkeypatch.setattr(MatrixSite, "_layout", lambda *given: (None, layout(*given)[1]))
    layer, inputs = LAYERS[name]
    case = masked_case(built(Between(layer())), inputs=inputs)
    assert_is_explicit(case, case.by_positions)


class ChannelsLast(nn.Module):
    """A convolution whose output lies in memory with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x):
        return torch.tanh(self.conv(x.to(memory_format=torch.channels_last))).contiguous()


def test_an_output_that_lies_otherwise_in_memory():
    case = masked_case(built(ChannelsLast()), inputs=normal(3, 2, 6, 7))
    assert_is_explicit(case)


SPLIT = {
    "split_qkv_input": {},
    "split_qkv_input of grouped queries": {"n_heads": 4, "n_key_value_heads": 2},
    "attn_in": {},
    "hook_mlp_in": {},
    "attn_result": {},
}


@pytest.mark.parametrize("setting", SPLIT)
def test_transformer_lens_split_inputs(setting):
    """Positions are those of the tokens, as without splitting, and so is the masked output."""
    model = hooked(**SPLIT[setting])
    tokens = integers(20, 2, 5)
    plain = masked_case(model, tokens=tokens)
    getattr(model, f"set_use_{setting.partition(' ')[0]}")(True)
    case = masked_case(model, tokens=tokens)
    assert {applied.shape[1] for applied in case.clean.applied.values()} == {5}
    assert_is_explicit(case, case.by_lens_hooks)
    torch.testing.assert_close(case.run(case.masks()), plain.run(case.masks()), rtol=1e-12, atol=1e-12)


def test_heads_that_read_different_inputs_are_refused():
    model = hooked()
    model.set_use_split_qkv_input(True)
    case = masked_case(model, "blocks.0.attn.W_Q", tokens=integers(20, 2, 5))
    edit = ("blocks.0.hook_q_input", lambda x, hook: x * torch.tensor([1.0, 2.0]).reshape(2, 1))
    with (
        case.model.held(),
        model.hooks([edit]),
        pytest.raises(AdapterError, match=r"'blocks.0.attn.W_Q' reads another input"),
    ):
        case.model.clean(case.data)


@pytest.mark.parametrize(
    "params", [[f"transformer.h.0.attn.c_attn.weight[{part}]" for part in "qkv"], ["transformer.h.0.attn.c_attn.weight[v]"]]
)
def test_parts_of_a_fused_matrix(params):
    pytest.importorskip("transformers")
    case = masked_case(hf_gpt2(), params, tokens=integers(20, 2, 5))
    assert_is_explicit(case)
    masks = case.masks()
    if len(params) == 1:
        torch.testing.assert_close(case.run(masks), case.by_positions(masks), rtol=1e-9, atol=1e-12)


def family(name, group=""):
    return next(each for each in FAMILIES if each.name == name and group in each.group)


RELEASE = (pytest.mark.release, pytest.mark.slow)
ALL_AT_ONCE = [
    *(family(name) for name in ("OPT", "T5", "Swin", "ResNet", "HookedEncoder (BERT)")),
    *(pytest.param(family(name), marks=RELEASE) for name in ("BART", "ViT", "Whisper", "HookedEncoderDecoder (T5)")),
]


@pytest.mark.filterwarnings("ignore")  # the foreign libraries' own notices
@pytest.mark.parametrize("of", ALL_AT_ONCE, ids=lambda each: each.name)
def test_all_matrices_of_a_model(of):
    """Merged batch and positions, encoders beside decoders, windows, images."""
    given = of.data(2)
    case = masked_case(of.model(), **given)
    assert len(case.names) >= 7
    assert_is_explicit(case, *((case.by_positions,) if "Hooked" not in of.name and of.name != "ResNet" else ()))


class Rounded(nn.Linear):
    """Computes with rounded weights, and hands gradients on as if it had not."""

    def forward(self, x):
        return functional.linear(x, self.weight + (torch.round(self.weight * 4) / 4 - self.weight).detach(), self.bias)


def _attention():
    return First(nn.MultiheadAttention(4, 2, batch_first=True), n_inputs=3)


class OnePosition(nn.Module):
    """A layer that is called at every position for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.stack([self.layer(x[:, place]) for place in range(x.shape[1])], 1)


SEQUENCE, IMAGES = normal(3, 5, 4), normal(3, 4, 6, 6)
REFUSED = {
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGES, "weight", "convolutions without groups"),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), IMAGES, "weight", "convolutions without groups"),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 2), normal(3, 2, 4, 4, 4), "weight", "need a layer rule"),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3), IMAGES, "weight", "need a layer rule"),
    "bias": (lambda: nn.Linear(4, 3), SEQUENCE, "bias", "is no matrix"),
    "gain": (lambda: nn.LayerNorm(4), SEQUENCE, "weight", "is no matrix"),
    "limited norms": (lambda: nn.Embedding(6, 4, max_norm=0.5), integers(6, 3, 5), "weight", "limited norms"),
    "rounded": (lambda: Rounded(4, 3), SEQUENCE, "weight", "rounded values"),
    "MultiheadAttention": (_attention, SEQUENCE, "layer.in_proj_weight", "layer rule"),
    "its output": (_attention, SEQUENCE, "layer.out_proj.weight", "layer rule"),
    "LSTM": (lambda: First(nn.LSTM(4, 3, batch_first=True)), SEQUENCE, "layer.weight_hh_l0", "layer rule"),
    "GRU": (lambda: First(nn.GRU(4, 3, batch_first=True)), SEQUENCE, "layer.weight_ih_l0", "layer rule"),
    "experts": (OwnExperts, SEQUENCE, "experts.0.weight", "need"),
    "tied": (Tied, SEQUENCE, "first.weight", "2 places of the model .tied weights"),
    "called twice": (Reused, SEQUENCE, "layer.weight", "more than once in a pass"),
    "called at each position": (OnePosition, SEQUENCE, "layer.weight", "more than once in a pass"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_components_is_refused_by_name(kind):
    layer, inputs, param, why = REFUSED[kind]
    assert_refused(built(Between(layer())), f"layer.{param}", why, inputs=inputs)


MODELS = {
    "GPT-2's tied table": (hf_gpt2, "transformer.wte.weight", "2 places of the model .tied weights"),
    "GPT-2's positions": (hf_gpt2, "transformer.wpe.weight", "need a layer rule"),
    "Llama, tied": (lambda: hf_llama(tie_word_embeddings=True), "model.embed_tokens.weight", "2 places"),
    "HookedTransformer's positions": (hooked_transformer, "pos_embed.W_pos", "need a layer rule"),
    "Mixtral": (lambda: family("Mixtral", "Mixtures").model(), "model.layers.0.mlp.experts.gate_up_proj[0]", "all experts"),
    "ALBERT": (
        lambda: family("ALBERT").model(),
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.key.weight",
        "more than once in a pass",
    ),
}


@pytest.mark.filterwarnings("ignore")  # the foreign libraries' own notices
@pytest.mark.parametrize("kind", MODELS)
def test_what_has_no_components_in_a_model_is_refused_by_name(kind):
    pytest.importorskip("transformers")
    build, param, why = MODELS[kind]
    assert_refused(build(), param, why, tokens=integers(20, 3, 5))


def assert_refused(model, param, why, **given):
    case = case_of(model, param, **given)
    with pytest.raises(ParamFeaturesError, match=why) as caught:
        masked = MaskedModel(case.engine, sites_of(case.engine))
        with masked.held():
            masked.clean(case.data)
    assert f"{param!r}" in str(caught.value)
