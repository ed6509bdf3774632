"""Every parameter of a HookedTransformer: rule, dense route and a loop of autograd give the same gradients."""

import pytest
import torch

import param_features as pf
from param_features.errors import AdapterError
from param_features.params import adapter_for
from tests.models import hooked_transformer, randomised
from tests.oracle import assert_equal_gradients, assert_every_route_agrees, case_of

pytest.importorskip("transformer_lens")

TOKENS = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(4))

ARCHITECTURES = {
    "layer norm": {},
    "rms norm": {"normalization_type": "RMS"},
    "no norm": {"normalization_type": None, "act_fn": "relu"},
    "grouped-query": {"n_heads": 4, "n_key_value_heads": 2},
    "gated": {"gated_mlp": True, "act_fn": "silu"},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "attention only": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True},
    "norm in the mlp": {"act_fn": "solu_ln"},
    "norms around": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
    "soft caps": {"output_logits_soft_cap": 5.0, "attn_scores_soft_cap": 5.0},
    "separate heads": {"use_attn_result": True},
    "like llama": {
        "n_heads": 4, "n_key_value_heads": 2, "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS",
        "positional_embedding_type": "rotary", "rotary_dim": 8, "final_rms": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_parameter_equals_autograd_by_a_rule(changes):
    case = case_of(hooked_transformer(**{"n_layers": 1 if changes else 2} | changes), tokens=TOKENS)
    assert case.engine.routes.why_dense == {}
    assert set(case.engine.routes.watched) == {"pos_embed.W_pos"} & set(case.engine.subset.names)
    assert_every_route_agrees(case)


def test_names_of_all_kinds_are_among_the_parameters():
    kinds = {name.rpartition(".")[2] for name in case_of(hooked_transformer(), tokens=TOKENS).engine.subset.names}
    assert kinds == {
        "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out", "b_out", "w", "b", "W_E", "W_pos",
        "W_U", "b_U",
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{"use_split_qkv_input": True}, {"use_attn_in": True}], ids=str)
def test_an_input_copied_per_head_keeps_the_rules(changes):
    case = case_of(hooked_transformer(n_layers=1, **changes), "blocks.*", tokens=TOKENS)
    assert not case.engine.routes.dense
    assert_every_route_agrees(case)


def test_an_embedding_with_a_norm_of_its_own_is_watched_at_its_operations():
    case = case_of(hooked_transformer(n_layers=1, post_embedding_ln=True), "embed.*", tokens=TOKENS)
    assert set(case.engine.routes.watched) == {"embed.W_E"}
    assert set(case.engine.routes.taps) == {"embed.ln.w", "embed.ln.b"}
    assert_every_route_agrees(case)


def test_norms_of_queries_and_keys_keep_their_rule():
    """They see batch, positions and heads merged into one axis."""
    case = case_of(hooked_transformer(n_layers=1, normalization_type="RMS", use_qk_norm=True), tokens=TOKENS)
    assert {"blocks.0.attn.q_norm.w", "blocks.0.attn.k_norm.w"} <= set(case.engine.routes.taps)
    assert_every_route_agrees(case)


def test_a_users_hook_that_changes_an_activation_is_taken_into_account():
    model = hooked_transformer(n_layers=1)
    model.add_hook("blocks.0.attn.hook_q", lambda value, hook: 3 * value)
    assert_every_route_agrees(case_of(model, "blocks.*", tokens=TOKENS))


def test_one_parameter_as_queries_and_keys():
    model = hooked_transformer(n_layers=1)
    model.blocks[0].attn.W_K = model.blocks[0].attn.W_Q
    case = case_of(model, "blocks.0.attn.W_K", tokens=TOKENS)
    assert case.engine.subset.names == ("blocks.0.attn.W_Q",)
    assert not case.engine.routes.dense
    assert_every_route_agrees(case)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_rules_are_kept_at_lower_precision(dtype, tolerance):
    """Rounding must not be mistaken for a wrong rule, not even for b_K, whose true gradient is zero."""
    model = hooked_transformer(dtype=dtype, n_layers=1)
    case = case_of(model, "blocks.0.*", tokens=TOKENS)
    assert case.engine.routes.why_dense == {}
    found, exact = case.gradients()[0], case_of(model.double(), "blocks.0.*", tokens=TOKENS).gradients()[0]
    for name, tensor in exact.items():
        assert found[name].dtype == torch.float32
        if not name.endswith("b_K"):
            assert (found[name] - tensor).norm() < tolerance * tensor.norm(), name


@pytest.mark.filterwarnings("ignore:HookedEncoder is deprecated")
class TestEncoders:
    """TransformerLens' BERT and T5, of the same components."""

    @staticmethod
    def built(kind: str, **changes):
        library = pytest.importorskip("transformer_lens")
        if not hasattr(library, kind):
            pytest.skip(f"this TransformerLens has no {kind}")
        settings = {
            "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 20, "n_ctx": 12,
            "act_fn": "gelu", "attention_dir": "bidirectional", "device": "cpu", "seed": 0, "dtype": torch.float64,
        }  # fmt: skip
        config = library.HookedTransformerConfig(**settings | changes)
        model = getattr(library, kind)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # the library leaves them as memory was
        return randomised(model)

    def test_every_parameter_of_an_encoder_that_is_used_stays_factored(self):
        case = case_of(self.built("HookedEncoder"), tokens=TOKENS)
        unused = {f"{part}.{key}" for part in ("nsp_head", "pooler") for key in ("W", "b")}
        assert set(case.engine.routes.dense) == unused
        assert "blocks.0.attn.W_K" in case.engine.routes.taps
        assert case.engine.subset["mlm_head.W"].fold == "i o -> o i"
        assert_equal_gradients(case.gradients()[0], case.by_autograd())

    def test_an_encoder_is_told_of_padding(self):
        model = self.built("HookedEncoder")
        mask = torch.ones_like(TOKENS)
        mask[1:, 4:] = 0
        features = pf.decompose(
            model, "blocks.0.attn.W_K", {"input_ids": TOKENS, "attention_mask": mask}, n_features=2, l0=1, steps=2,
            n_samples=6, progress=False,
        )  # fmt: skip
        found = features.activations({"input_ids": TOKENS, "attention_mask": mask})
        torch.testing.assert_close(found[1:, :4], features.activations(TOKENS[1:, :4]), rtol=1e-6, atol=1e-9)

    def test_every_parameter_of_an_encoder_and_decoder_but_its_relative_bias_stays_factored(self):
        relative = {"positional_embedding_type": "relative_positional_bias", "normalization_type": "RMS"}
        buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "final_rms": True}
        model = self.built("HookedEncoderDecoder", **relative, **buckets)
        with pytest.raises(AdapterError, match='"decoder_input"'):
            adapter_for(model).call(TOKENS)
        case = case_of(model, inputs={"input": TOKENS, "decoder_input": TOKENS[:, :4]})
        assert set(case.engine.routes.dense) == {f"{side}.0.attn.rel_pos_bias.weight" for side in ("encoder", "decoder")}
        assert_equal_gradients(case.gradients()[0], case.by_autograd())
