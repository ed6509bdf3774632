"""Finding adapters, registering them, and what they read off a model; see test_conformance.py for what all promise."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.adapters import HookedTransformerAdapter, ModuleAdapter
from param_features.errors import AdapterError, OutputError, RegistryError
from param_features.params import adapter_for, register_adapter, registry
from tests.models import Classifier, hooked_transformer


@pytest.fixture(autouse=True)
def registered_only_here(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        return self.lm_head(self.embed(tokens))


def test_aliases():
    pytest.importorskip("transformer_lens")
    found = adapter_for(hooked_transformer(n_layers=1, n_heads=4, n_key_value_heads=2)).aliases()
    assert found == {f"blocks.0.attn.{name}": f"blocks.0.attn._{name}" for name in ("W_K", "W_V", "b_K", "b_V")}
    assert adapter_for(Language()).aliases() == {"lm_head.weight": "embed.weight"}


def test_an_embeddings_rows_are_inputs_in_both_libraries():
    pytest.importorskip("transformer_lens")
    assert adapter_for(Language()).views()["embed.weight"].matrix_shape == (4, 7)
    assert adapter_for(hooked_transformer()).views()["embed.W_E"].matrix_shape == (16, 20)


@pytest.mark.parametrize(
    ("build", "d_vocab", "predicts", "head"),
    [(Language, 7, True, "lm_head"), (Classifier, None, True, None), (lambda: nn.Linear(2, 2), None, False, None)],
)
def test_what_a_plain_module_shows_by_its_names(build, d_vocab, predicts, head):
    model = build()
    found = adapter_for(model)
    assert (found.d_vocab, found.predicts_tokens) == (d_vocab, predicts)
    assert found.head() is (getattr(model, head) if head else None)


@pytest.mark.parametrize(("soft_cap", "has_head"), [(-1.0, True), (3.0, False)])
def test_the_unembedding_is_the_head_unless_a_soft_cap_follows(soft_cap, has_head):
    pytest.importorskip("transformer_lens")
    model = hooked_transformer(n_layers=1, output_logits_soft_cap=soft_cap)
    assert adapter_for(model).head() is (model.unembed if has_head else None)


def test_a_subclass_of_hooked_transformer_is_read_as_one():
    pytest.importorskip("transformer_lens")
    model = hooked_transformer(n_layers=1)
    model.__class__ = type("Mine", (type(model),), {"__module__": "my_project.models"})
    assert type(adapter_for(model)) is HookedTransformerAdapter
    assert adapter_for(model).d_vocab == 20


def test_a_class_that_only_bears_the_name_is_a_plain_module():
    assert type(adapter_for(type("HookedTransformer", (nn.Linear,), {})(2, 2))) is ModuleAdapter


@pytest.mark.parametrize("model", [3, torch.zeros(2), lambda x: x], ids=lambda model: type(model).__name__)
def test_an_unknown_model_is_refused_with_the_known_ones(model):
    with pytest.raises(
        AdapterError, match=r"Known: transformer_lens\.HookedTransformer, .*torch\.Module\. .*register_adapter"
    ):
        adapter_for(model)
    with pytest.raises(AdapterError, match="No adapter reads"):
        pf.list_params(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [("gpt2", r"model is 'gpt2'\. Load the model first: .*from_pretrained"), (None, "Give a torch nn.Module")],
)
def test_what_stands_where_a_model_is_needed_says_what_to_do(model, message):
    for read in (adapter_for, pf.list_params):
        with pytest.raises(AdapterError, match=message):
            read(model)


def test_registering_twice_is_refused():
    with pytest.raises(RegistryError, match=r"'torch.Module' already has the adapter ModuleAdapter.*subclass"):
        register_adapter("torch.Module", HookedTransformerAdapter)
    assert type(adapter_for(nn.Linear(2, 2))) is ModuleAdapter


def test_a_third_partys_adapter_comes_first_for_its_own_class():
    class Named(ModuleAdapter):
        def aliases(self):
            return super().aliases() | {"the weight": "weight"}

    Mine = type("Mine", (nn.Linear,), {"__module__": "tests.somewhere"})
    register_adapter("tests.Mine", Named)
    assert type(adapter_for(type("Child", (Mine,), {})(2, 2))) is Named
    assert type(adapter_for(nn.Linear(2, 2))) is ModuleAdapter
    pf.decompose(Mine(3, 3), "the weight", inputs=torch.randn(40, 3), n_features=2, l0=1, steps=2, progress=False).direction(
        0
    )["weight"]


def test_output_is_the_tensor_or_its_logits():
    class Out:
        logits = torch.ones(2)

    found = adapter_for(nn.Linear(2, 2))
    assert found.tensor_of(Out()) is Out.logits
    assert found.tensor_of(Out.logits) is Out.logits
    for wrong in ((Out.logits,), {"logits": Out.logits}, None):
        with pytest.raises(OutputError, match=rf"Linear returned a {type(wrong).__name__}.*output=lambda out"):
            found.tensor_of(wrong)


def test_text_without_a_tokenizer():
    pytest.importorskip("transformer_lens")
    for model in (Language(), hooked_transformer(n_layers=1)):
        assert adapter_for(model).to_strings([3, 5]) == ["3", "5"]
        with pytest.raises(AdapterError, match="has no tokenizer"):
            adapter_for(model).to_ids("text")


def test_text_with_a_tokenizer_goes_to_ids_and_back():
    pytest.importorskip("transformer_lens")
    model = pf.demo.load_model()
    found = adapter_for(model)
    assert found.to_ids("Once upon a time") == model.to_tokens("Once upon a time")[0].tolist()
    assert found.to_strings(found.to_ids("Once upon a time")) == ["<bos>", "Once", " upon", " a", " time"]
    assert found.description == f"transformer_lens {type(model).__name__}"


def test_an_encoder_decoder_without_tokens_for_its_decoder_is_refused_with_the_way_out():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "num_layers": 1,
        "num_heads": 2,
        "d_model": 8,
        "d_ff": 8,
        "d_kv": 4,
        "vocab_size": 9,
        "decoder_start_token_id": 0,
    }
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    call = {"n_features": 2, "l0": 1, "steps": 2, "progress": False}
    tokens = torch.randint(9, (30, 5))
    with pytest.raises(AdapterError, match="decoder_input_ids"):
        pf.decompose(model, "encoder.block.0.layer.0.SelfAttention.k.weight", tokens, **call)
    both = {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    features = pf.decompose(model, "encoder.block.0.layer.0.SelfAttention.k.weight", inputs=both, **call)
    assert features.activations(inputs={key: value[:2] for key, value in both.items()}).shape == (2, 5, 2)
