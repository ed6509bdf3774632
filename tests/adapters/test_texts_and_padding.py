"""Texts and padded tokens are read the same way by every adapter: no padding among samples, no text cut, no mark twice."""

from functools import cache

import pytest
import torch

import param_features as pf
from param_features.errors import InputError, Notice
from param_features.params import adapter_for
from param_features.problem import read_inputs, stream_rows
from tests.adapters.zoo import D_VOCAB, N_CTX, booted, hf_gpt2, hf_llama, hooked, lens_major, tokenizer

TEXTS = [" w5 w6 w7 w8", " w9", " w5 w4 w6 w7 w8 w9 w10", " w11 w12"]
QUICK = {"n_features": 2, "l0": 1, "progress": False, "fit": pf.FitSettings(steps=2, batch_size=16)}
PADS = {"a token of its own": "<pad>", "the end of a text": "</s>", "the beginning of a text": "<s>"}


def nnsight_gpt2():
    nnsight = pytest.importorskip("nnsight")
    return nnsight.TransformersModel(hf_gpt2(), tokenizer=tokenizer(), task="text-generation")


BUILT = {
    "hugging face": (hf_gpt2, "transformer.h.0.mlp.c_fc.weight"),
    "nnsight": (nnsight_gpt2, "transformer.h.0.mlp.c_fc.weight"),
    "hooked": (hooked, "blocks.0.mlp.W_in"),
    "bridge": (lambda: booted(hf_llama, dtype=torch.float32), "blocks.0.mlp.W_in"),
}


@cache
def model_of(name: str):
    pytest.importorskip("transformer_lens" if name in ("hooked", "bridge") else "transformers")
    return BUILT[name][0]()


def tokenizer_of(name: str, pad: str = "<pad>", side: str = "right"):
    """The model's own tokenizer, or that which is given with it, padding as told."""
    own = tokenizer() if name == "hugging face" else model_of(name).tokenizer
    own.pad_token, own.padding_side = pad, side
    return own


@pytest.fixture(params=BUILT)
def name(request):
    model_of(request.param)
    yield request.param
    tokenizer_of(request.param)


def given(name: str, own) -> dict:
    return {"tokenizer": own} if name == "hugging face" else {}


def padded(name, pad, side):
    own = tokenizer_of(name, pad, side)
    return own, own(TEXTS, padding=True, return_tensors="pt")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad", PADS.values(), ids=PADS)
class TestPadding:
    def test_a_plain_tensor_has_the_mask_that_its_tokenizer_gives(self, name, pad, side):
        own, encoding = padded(name, pad, side)
        adapter = adapter_for(model_of(name)).reading(tokenizer=own)
        mask = encoding["attention_mask"].bool()
        assert 0.3 < (~mask).double().mean() < 0.6
        for tokens, inputs in ((encoding["input_ids"], None), (encoding["input_ids"].tolist(), None),
                               (None, {"input_ids": encoding["input_ids"]})):  # fmt: skip
            found, expected = read_inputs(adapter, tokens, inputs), read_inputs(adapter, encoding, None)
            assert torch.equal(found.mask, mask)
            assert found.token_rows == expected.token_rows == [adapter.to_ids(text) for text in TEXTS]
            assert {key: value.tolist() for key, value in found.kwargs.items() if key != "input_ids"} == {
                key: value.tolist() for key, value in expected.kwargs.items()
            }


@pytest.mark.parametrize(
    ("pad", "side"),
    [
        pytest.param(pad, side, id=f"{side}-{told}", marks=[] if side == first else [pytest.mark.release])
        for (told, pad), first in zip(PADS.items(), ("right", "left", "right"), strict=True)
        for side in ("right", "left")
    ],
)
def test_no_sample_lies_on_padding_and_the_share_is_told(name, pad, side):
    own, encoding = padded(name, pad, side)
    ids, mask = encoding["input_ids"].repeat(6, 1), encoding["attention_mask"].bool().repeat(6, 1)
    with pytest.warns(Notice, match=f"{1 - mask.double().mean():.1%} of the positions are padding"):
        features = pf.decompose(model_of(name), BUILT[name][1], ids, **given(name, own), **QUICK)
    texts = pf.decompose(model_of(name), BUILT[name][1], TEXTS * 6, **given(name, own), **QUICK)
    assert features.metrics["n_samples"] == texts.metrics["n_samples"]
    assert not features.activations(ids)[~mask].any()
    assert features.activations(ids)[mask].any(1).all()
    assert {len(example.tokens) for example in features.top_examples(0, 3)} <= {
        len(own(text)["input_ids"]) for text in TEXTS
    }


class TestWhatIsNoPadding:
    @pytest.mark.parametrize("pad", PADS.values(), ids=PADS)
    def test_rows_of_text_alone_stay_as_they_are(self, name, pad):
        own = tokenizer_of(name, pad)
        ids = torch.tensor([own.bos_token_id, 5, own.pad_token_id, 7, 8]).repeat(3, 1)
        adapter = adapter_for(model_of(name)).reading(tokenizer=own)
        assert read_inputs(adapter, ids, None).mask is None
        assert read_inputs(adapter, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None).mask is None

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_a_row_of_nothing_but_padding_is_refused(self, name, side):
        own = tokenizer_of(name, "<pad>", side)
        ids = torch.tensor([[1, 5, 6], [own.pad_token_id] * 3])
        with pytest.raises(InputError, match="Row 1 of the tokens is nothing but the padding token"):
            read_inputs(adapter_for(model_of(name)).reading(tokenizer=own), ids, None)

    def test_packed_rows_that_begin_with_a_mark_are_text(self):
        """Of a tokenizer that pads left with the mark that divides texts, and sets none itself, as GPT-2's in nnsight."""
        pytest.importorskip("transformers")
        own = tokenizer()
        own.add_bos_token, own.pad_token, own.padding_side = False, "<s>", "left"
        adapter = adapter_for(hf_gpt2()).reading(tokenizer=own)
        ids = torch.tensor([[1, 5, 6, 7], [8, 1, 9, 5], [4, 5, 6, 1]])
        assert adapter.to_ids(" w5") == [5]
        assert read_inputs(adapter, ids, None).mask is None


def test_padding_that_only_the_configuration_tells_is_named_with_its_share():
    pytest.importorskip("transformers")
    model, ids = hf_gpt2(pad_token_id=3), torch.randint(4, D_VOCAB, (12, 6), generator=torch.Generator().manual_seed(0))
    ids[::2, 3:] = 3
    with pytest.warns(Notice, match="25.0% of the positions are runs of the model's padding token 3.*or tokenizer="):
        features = pf.decompose(model, BUILT["hugging face"][1], ids, **QUICK)
    assert features.examples.mask is None


def long_text(n: int) -> str:
    return " w5" * n


def test_texts_longer_than_the_context_are_refused_by_name_and_never_cut(name):
    own = tokenizer_of(name)
    adapter = adapter_for(model_of(name)).reading(tokenizer=own)
    n_marks = len(adapter.to_ids(" w5")) - 1
    assert read_inputs(adapter, [long_text(N_CTX - n_marks)], None).tokens.shape == (1, N_CTX)
    message = rf"positions; the model's context has {N_CTX}.*truncation=True, max_length={N_CTX}"
    with pytest.raises(InputError, match=f"texts have {N_CTX + 1} {message}"):
        read_inputs(adapter, [" w6", long_text(N_CTX + 1 - n_marks)], None)
    with pytest.raises(InputError, match=f"texts have {40 + n_marks} {message}"):
        pf.decompose(model_of(name), BUILT[name][1], [long_text(40)] * 12, **given(name, own), **QUICK)
    cut = own([" w6", long_text(40)], truncation=True, max_length=N_CTX, padding=True)
    assert read_inputs(adapter, cut, None).tokens.shape == (2, N_CTX)


def test_a_text_that_begins_with_the_mark_of_beginnings_gets_no_second_one(name):
    own = tokenizer_of(name)
    adapter = adapter_for(model_of(name)).reading(tokenizer=own)
    plain = adapter.to_ids(" w5 w6")
    assert plain[0] == own.bos_token_id
    assert adapter.to_ids("<s> w5 w6") == plain
    assert adapter.to_ids("<s><s> w5 w6") == [own.bos_token_id, *plain]
    rows = stream_rows([{"text": "<s> w5 w6"}, {"text": " w5 w6"}], 2, tokenizer=own, n_ctx=3)
    assert rows.tolist() == [plain, plain]
    features = pf.decompose(model_of(name), BUILT[name][1], TEXTS * 4, **given(name, own), **QUICK)
    assert torch.equal(features.activations(["<s> w5 w6"]), features.activations([" w5 w6"]))


def test_marks_at_both_ends_are_set_once():
    """As BERT's, whose marks have other names."""
    from tokenizers.processors import TemplateProcessing

    pytest.importorskip("transformers")
    own = tokenizer()
    marks = {"cls_token": "<s>", "sep_token": "</s>"}
    own.add_special_tokens(marks)
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    adapter = adapter_for(hf_gpt2()).reading(tokenizer=own)
    plain = adapter.to_ids(" w5 w6")
    assert (plain[0], plain[-1]) == (1, 2)
    for text in ("<s> w5 w6", " w5 w6</s>", "<s> w5 w6</s>"):
        assert adapter.to_ids(text) == plain


@pytest.mark.skipif(lens_major() >= 4, reason="TransformerLens 4 has no HookedTransformer")
def test_what_transformerlens_pads_by_itself_has_no_samples_on_padding():
    pytest.importorskip("transformer_lens")
    model = model_of("hooked")
    for pad in PADS.values():
        tokenizer_of("hooked", pad)
        tokens = model.to_tokens(TEXTS)
        found = read_inputs(adapter_for(model), tokens, None)
        assert found.token_rows == [adapter_for(model).to_ids(text) for text in TEXTS]
    tokenizer_of("hooked")
