"""Encoders and encoder-decoders of transformers."""

from functools import partial
from typing import Any

import torch

from tests.families.family import ids
from tests.families.hugging_face import K_PROJ, PLAIN, transformers_family

_ENCODER = {"type_vocab_size": 2, "embedding_size": 16}
_PAIR = {
    "d_model": 16, "decoder_start_token_id": 1, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
}  # fmt: skip
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


def both_sides(n_rows: int) -> dict[str, Any]:
    """Rows for an encoder, and rows of another length for its decoder."""
    return {"inputs": {"input_ids": ids(n_rows, 7), "decoder_input_ids": ids(n_rows, 5)}}


_encoder = partial(transformers_family, "Encoders", task="MaskedLM", **_ENCODER)
_pair = partial(transformers_family, "Encoder-decoders", task="Seq2SeqLM", data=both_sides)

ENCODERS = [
    _encoder("BERT", "bert", "bert.encoder.layer.0.attention.self.key.weight", common=True),
    _encoder("RoBERTa", "roberta", "roberta.encoder.layer.0.attention.self.key.weight", common=True),
    _encoder(
        "DistilBERT",
        "distilbert",
        "distilbert.transformer.layer.0.attention.k_lin.weight",
        dim=16,
        n_heads=4,
        n_layers=2,
        hidden_dim=24,
    ),
    _encoder("DeBERTa", "deberta", "deberta.encoder.layer.0.attention.self.in_proj.weight"),
    _encoder(
        "DeBERTa-v2 and -v3",
        "deberta-v2",
        "deberta.encoder.layer.0.attention.self.key_proj.weight",
        common=True,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
    ),
    _encoder("ELECTRA", "electra", "electra.encoder.layer.0.attention.self.key.weight"),
    _encoder("ALBERT", "albert", "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.key.weight"),
    _encoder("ModernBERT", "modernbert", "model.layers.0.attn.Wqkv.weight", common=True),
    _encoder("MPNet", "mpnet", "mpnet.encoder.layer.0.attention.attn.k.weight"),
    _encoder("CamemBERT", "camembert", "roberta.encoder.layer.0.attention.self.key.weight"),
    _encoder("XLM-RoBERTa", "xlm-roberta", "roberta.encoder.layer.0.attention.self.key.weight"),
    _encoder("FNet", "fnet", "fnet.encoder.layer.0.intermediate.dense.weight"),
    _encoder("SqueezeBERT", "squeezebert", "transformer.encoder.layers.0.attention.key.weight"),
    _encoder("ESM", "esm", "esm.encoder.layer.0.attention.self.key.weight"),
    _encoder("ConvBERT", "convbert", "convbert.encoder.layer.0.attention.self.key.weight"),
    _encoder("RoFormer", "roformer", "roformer.encoder.layer.0.attention.self.key.weight"),
    _encoder("BigBird", "big_bird", "bert.encoder.layer.0.attention.self.key.weight"),
    _encoder("XLM", "xlm", "transformer.attentions.0.k_lin.weight", emb_dim=16, n_heads=4, n_layers=2),
    _encoder("EuroBERT", "eurobert", K_PROJ),
    _encoder("BERT, text classes", "bert", "bert.encoder.layer.0.attention.self.key.weight", task="SequenceClassification"),
]

ENCODER_DECODERS = [
    _pair("T5", "t5", "decoder.block.0.layer.1.EncDecAttention.k.weight", common=True, base=PLAIN, **_T5),
    _pair("mT5", "mt5", "encoder.block.0.layer.0.SelfAttention.k.weight", base=PLAIN, **_T5),
    _pair("UMT5", "umt5", "encoder.block.0.layer.0.SelfAttention.k.weight", base=PLAIN, **_T5),
    _pair("LongT5", "longt5", "encoder.block.0.layer.0.LocalSelfAttention.k.weight", base=PLAIN, local_radius=3, **_T5),
    _pair("BART", "bart", "model.decoder.layers.0.encoder_attn.k_proj.weight", common=True, **_PAIR),
    _pair("Marian", "marian", "model.encoder.layers.0.self_attn.k_proj.weight", **_PAIR),
    _pair("mBART", "mbart", "model.encoder.layers.0.self_attn.k_proj.weight", **_PAIR),
    _pair("Pegasus", "pegasus", "model.encoder.layers.0.self_attn.k_proj.weight", **_PAIR),
    _pair("M2M-100 (NLLB)", "m2m_100", "model.encoder.layers.0.self_attn.k_proj.weight", **_PAIR),
    _pair("BlenderBot", "blenderbot", "model.encoder.layers.0.self_attn.k_proj.weight", **_PAIR),
    _pair(
        "LED",
        "led",
        "led.encoder.layers.0.self_attn.longformer_self_attn.key.weight",
        max_encoder_position_embeddings=16,
        max_decoder_position_embeddings=16,
        attention_window=4,
        **_PAIR,
    ),
    _pair(
        "Switch Transformers",
        "switch_transformers",
        "encoder.block.0.layer.0.SelfAttention.k.weight",
        base=PLAIN,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=4,
        dtype=torch.float32,
        rounding=1e-3,
        **_T5,
    ),
]
