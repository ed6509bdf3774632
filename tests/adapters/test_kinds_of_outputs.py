"""Hugging Face models that take no tokens, or whose outputs lie at other positions than their inputs' tokens."""

import pytest
import torch

import param_features as pf
from param_features.errors import InputError, OutputError
from param_features.problem import KL
from tests.adapters.zoo import seeded

transformers = pytest.importorskip("transformers")

ROWS = 12
QUICK = {"n_features": 2, "l0": 1, "progress": False, "fit": pf.FitSettings(steps=2, batch_size=16)}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def ids(*shape):
    return torch.randint(3, 20, shape, generator=torch.Generator().manual_seed(4))


def built(model: str, config: str, **settings):
    return seeded(getattr(transformers, model), getattr(transformers, config)(**settings), dtype=torch.float32)


def t5():
    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return built("T5ForConditionalGeneration", "T5Config", **sizes)


def bart():
    layers = {f"{side}_{name}": number for side in ("encoder", "decoder")
              for name, number in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    return built(
        "BartForConditionalGeneration", "BartConfig", vocab_size=20, d_model=16, max_position_embeddings=16, **layers
    )


def wav2vec2():
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    convolutions = {"conv_dim": [8, 8], "conv_stride": [3, 2], "conv_kernel": [5, 3], "feat_extract_norm": "layer"}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return built("Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=12, **layers, **convolutions, **positions)


def resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic", "num_labels": 4}
    return built("ResNetForImageClassification", "ResNetConfig", **sizes)


def convnext():
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "num_labels": 4}
    return built("ConvNextForImageClassification", "ConvNextConfig", **sizes)


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return built("ViTForImageClassification", "ViTConfig", image_size=8, patch_size=4, num_labels=4, **sizes)


def segformer():
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 8], "mlp_ratios": [2, 2]}
    patches = {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 1], "decoder_hidden_size": 8}
    return built("SegformerForSemanticSegmentation", "SegformerConfig", num_labels=4, **sizes, **patches)


def decoded(n_from: int, n_to: int):
    return {"input_ids": ids(ROWS, n_from), "decoder_input_ids": ids(ROWS, n_to)}


# How to build it, a parameter, the arguments, the shape of activations without the features, and what else is told.
FAMILIES = {
    "T5": (t5, "encoder.block.0.layer.0.SelfAttention.k.weight", decoded(7, 4), (ROWS, 4), {}),
    "BART": (bart, "model.encoder.layers.0.self_attn.k_proj.weight", decoded(6, 9), (ROWS, 9), {}),
    "wav2vec2": (
        wav2vec2, "wav2vec2.encoder.layers.0.attention.k_proj.weight", {"input_values": drawn(ROWS, 60)}, (ROWS, 9), {},
    ),
    "ResNet": (resnet, "classifier.1.weight", {"pixel_values": drawn(ROWS, 3, 16, 16)}, (ROWS,), {}),
    "ConvNeXt": (convnext, "classifier.weight", {"pixel_values": drawn(ROWS, 3, 16, 16)}, (ROWS,), {}),
    "ViT": (vit, "vit.layers.0.mlp.fc1.weight", {"pixel_values": drawn(ROWS, 3, 8, 8)}, (ROWS,), {}),
    "Segformer": (
        segformer, "decode_head.classifier.weight", {"pixel_values": drawn(ROWS, 3, 8, 8)}, (ROWS, 16),
        {"output": lambda out: out.logits.flatten(2).mT, "divergence": "kl"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_sample_has_the_gradient_of_its_own_divergence(name):
    build, param, inputs, samples, call = FAMILIES[name]
    model = build()
    features = pf.decompose(model, param, inputs=inputs, **call, **QUICK)
    assert features.divergence.name == "kl"
    for route in ("vjp", "jvp"):
        found = features.activations(inputs=inputs, route=route)
        assert found.shape == (*samples, 2)
        row = 3
        place = (row, samples[1] - 2) if len(samples) == 2 else (row,)
        output = model(**{key: value[[row]] for key, value in inputs.items()})
        logits = call.get("output", lambda out: out.logits)(output)[0]
        sample = (logits[place[1]] if len(samples) == 2 else logits)[None]
        value = torch.stack([KL().value(sample, reference[None])[0] for reference in features.references]).mean()
        (gradient,) = torch.autograd.grad(value, dict(model.named_parameters())[param])
        matrix = features.engine.subset[param].to_matrix(gradient)
        expected = torch.einsum("foi,oi->f", features.v_in.materialize()[param], matrix)
        torch.testing.assert_close(found[place], expected, rtol=2e-3, atol=1e-6)


def test_pixels_by_classes_are_refused_with_what_makes_them_samples():
    build, param, inputs, *_ = FAMILIES["Segformer"]
    with pytest.raises(OutputError, match=r"shape \(2, 4, 4, 4\).*out\.logits\.flatten\(2\)\.mT"):
        pf.decompose(build(), param, inputs=inputs, **QUICK)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_the_encoders_mask_is_not_the_decoders(name):
    """Equal lengths: the encoder's padding changes what is computed, and no position of the decoder is taken for padding."""
    build, param, _, _, _ = FAMILIES[name]
    model, inputs = build(), decoded(5, 5)
    encoder, decoder = torch.ones(ROWS, 5, dtype=torch.long), torch.ones(ROWS, 5, dtype=torch.long)
    encoder[::2, 3:], decoder[1::2, 2:] = 0, 0
    features = pf.decompose(model, param, inputs=inputs | {"attention_mask": encoder}, **QUICK)
    assert features.activations(inputs=inputs | {"attention_mask": encoder}).ne(0).any(-1).all()
    given = inputs | {"attention_mask": encoder, "decoder_attention_mask": decoder}
    assert torch.equal(features.activations(inputs=given).ne(0).any(-1), decoder.bool())
    shown = features.top_examples(0, 3, inputs=given)
    assert all(len(example.tokens) == int(decoder[example.row].sum()) for example in shown)
    assert shown[0].tokens == tuple(map(str, inputs["decoder_input_ids"][shown[0].row].tolist()))[: len(shown[0].tokens)]


def test_an_encoders_padding_is_refused_where_the_decoders_tokens_are_unknown():
    mask = torch.ones(ROWS, 5, dtype=torch.long)
    mask[0, 4:] = 0
    with pytest.raises(InputError, match="decoder's tokens as decoder_input_ids"):
        pf.decompose(bart(), FAMILIES["BART"][1], inputs={"input_ids": ids(ROWS, 5), "attention_mask": mask}, **QUICK)


def test_padded_sound_has_no_samples_at_its_padding():
    build, param, inputs, *_ = FAMILIES["wav2vec2"]
    mask = torch.ones(ROWS, 60, dtype=torch.long)
    mask[::2, 30:] = 0
    features = pf.decompose(build(), param, inputs=inputs | {"attention_mask": mask}, **QUICK)
    found = features.activations(inputs=inputs | {"attention_mask": mask}).ne(0).any(-1)
    assert found.sum(1).tolist() == [4, 9] * (ROWS // 2)
    assert features.examples.samples.sum(1).tolist() == [
        {0: 9}.get(int((row == 0).sum()), 4) for row in features.examples.kwargs["attention_mask"]
    ]


@pytest.mark.parametrize("name", ["T5", "wav2vec2", "ResNet"])
def test_features_of_such_models_are_saved_and_loaded(name, tmp_path):
    build, param, inputs, _, call = FAMILIES[name]
    model = build()
    features = pf.decompose(model, param, inputs=inputs, positions="last" if name == "wav2vec2" else "all", **call, **QUICK)
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=model)
    assert torch.equal(loaded.activations(inputs=inputs), features.activations(inputs=inputs))
    assert [str(example) for example in loaded.top_examples(0, 2)] == [
        str(example) for example in features.top_examples(0, 2)
    ]
