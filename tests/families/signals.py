"""Image and audio models of transformers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.families.family import D_VOCAB, Family, ids, normal
from tests.families.hugging_face import transformers_model

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "num_labels": 5}
_PATCHES = {**_SIZES, "image_size": 8, "patch_size": 4}
_WINDOWS = {
    "image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2,
    "num_labels": 5,
}  # fmt: skip
_STAGES = {"num_labels": 5, "hidden_sizes": [8, 16], "depths": [1, 1]}
_SPEECH = {
    **_SIZES, "vocab_size": D_VOCAB, "conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [4, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "mask_time_prob": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_WHISPER = {
    "vocab_size": D_VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 4, "max_source_positions": 6,
    "max_target_positions": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def images(side: int) -> Callable[[int], dict[str, Any]]:
    """Square images."""
    return lambda n_rows: {"inputs": {"pixel_values": normal(n_rows, 3, side, side)}}


def sound(n_rows: int) -> dict[str, Any]:
    """Rows of samples of a sound."""
    return {"inputs": {"input_values": normal(n_rows, 96)}}


def spectra(n_rows: int) -> dict[str, Any]:
    """Spectrograms, with the tokens of their text."""
    return {"inputs": {"input_features": normal(n_rows, 4, 12), "decoder_input_ids": ids(n_rows, 5)}}


def patches(n_rows: int) -> dict[str, Any]:
    """Spectrograms as an audio spectrogram transformer takes them."""
    return {"inputs": {"input_values": normal(n_rows, 16, 16)}}


def settled(model: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    """The model with BatchNorm's running statistics as on some inputs: with those of a new one, signals die out."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(**inputs)
    return model.eval()


def _family(
    group: str,
    name: str,
    kind: str,
    param: str,
    *,
    data: Callable,
    task: str,
    common: bool = False,
    rounding: float = 1e-9,
    **sizes: Any,
) -> Family:
    def build() -> nn.Module:
        return settled(transformers_model(kind, sizes, task=task), data(16)["inputs"])

    return Family(name, group, build, data, param, common, rounding)


_image = partial(_family, "Image models", task="ImageClassification", data=images(8))
_audio = partial(_family, "Audio models", data=sound)

IMAGES = [
    _image("ViT", "vit", "vit.layers.0.attention.k_proj.weight", common=True, **_PATCHES),
    _image("DeiT", "deit", "deit.layers.0.attention.k_proj.weight", task="DeiTForImageClassification", **_PATCHES),
    _image("BEiT", "beit", "beit.layers.0.attention.k_proj.weight", **_PATCHES),
    _image("DINOv2", "dinov2", "dinov2.encoder.layer.0.attention.k_proj.weight", **_PATCHES),
    _image(
        "CLIP, image classes",
        "clip",
        "vision_model.encoder.layers.0.self_attn.k_proj.weight",
        vision_config=_PATCHES,
        num_labels=5,
    ),
    _image(
        "SigLIP, image classes",
        "siglip",
        "vision_model.encoder.layers.0.self_attn.k_proj.weight",
        vision_config=_PATCHES,
        num_labels=5,
    ),
    _image(
        "ResNet",
        "resnet",
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        common=True,
        data=images(16),
        embedding_size=8,
        layer_type="basic",
        **_STAGES,
    ),
    _image(
        "RegNet",
        "regnet",
        "regnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        data=images(16),
        embedding_size=8,
        groups_width=4,
        **_STAGES,
    ),
    _image(
        "ConvNeXt",
        "convnext",
        "convnext.encoder.stages.0.layers.0.pwconv1.weight",
        common=True,
        data=images(16),
        num_stages=2,
        **_STAGES,
    ),
    _image(
        "ConvNeXt V2",
        "convnextv2",
        "convnextv2.encoder.stages.0.layers.0.pwconv1.weight",
        data=images(16),
        num_stages=2,
        **_STAGES,
    ),
    _image(
        "Swin",
        "swin",
        "swin.encoder.layers.0.blocks.0.attention.k_proj.weight",
        common=True,
        data=images(8),
        **_WINDOWS,
    ),
    _image(
        "Swin V2",
        "swinv2",
        "swinv2.encoder.layers.0.blocks.0.attention.self.key.weight",
        data=images(8),
        **_WINDOWS,
    ),
    _image(
        "SegFormer",
        "segformer",
        "segformer.stages.0.blocks.0.attention.k_proj.weight",
        data=images(16),
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=5,
    ),
    _image(
        "MobileNet V2",
        "mobilenet_v2",
        "mobilenet_v2.layer.1.expand_1x1.convolution.weight",
        data=images(32),
        depth_multiplier=0.1,
        min_depth=4,
        depth_divisible_by=4,
        num_labels=5,
    ),
    _image(
        "PoolFormer",
        "poolformer",
        "poolformer.encoder.block.0.0.output.conv1.weight",
        data=images(32),
        hidden_sizes=[4, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_labels=5,
    ),
]

AUDIO = [
    _audio(
        "wav2vec 2.0, CTC",
        "wav2vec2",
        "wav2vec2.encoder.layers.0.attention.k_proj.weight",
        common=True,
        task="CTC",
        **_SPEECH,
    ),
    _audio(
        "wav2vec 2.0, classes",
        "wav2vec2",
        "wav2vec2.encoder.layers.0.attention.k_proj.weight",
        common=True,
        task="AudioClassification",
        **_SPEECH,
    ),
    _audio("HuBERT, CTC", "hubert", "hubert.encoder.layers.0.attention.k_proj.weight", task="CTC", **_SPEECH),
    _audio(
        "WavLM, classes", "wavlm", "wavlm.encoder.layers.0.attention.k_proj.weight", task="AudioClassification", **_SPEECH
    ),
    _audio("SEW, classes", "sew", "sew.encoder.layers.0.attention.k_proj.weight", task="AudioClassification", **_SPEECH),
    _audio(
        "Audio spectrogram transformer",
        "audio-spectrogram-transformer",
        "audio_spectrogram_transformer.layers.0.attention.k_proj.weight",
        data=patches,
        task="AudioClassification",
        num_mel_bins=16,
        max_length=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        **_SIZES,
    ),
    _audio(
        "Whisper",
        "whisper",
        "model.decoder.layers.0.encoder_attn.k_proj.weight",
        common=True,
        data=spectra,
        task="SpeechSeq2Seq",
        **_WHISPER,
    ),
    _audio(
        "Whisper, classes",
        "whisper",
        "encoder.layers.0.self_attn.k_proj.weight",
        data=lambda n: {"inputs": {"input_features": normal(n, 4, 12)}},
        task="AudioClassification",
        num_labels=5,
        classifier_proj_size=8,
        **_WHISPER,
    ),
]

SIGNALS = [*IMAGES, *AUDIO]
