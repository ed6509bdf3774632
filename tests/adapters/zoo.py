"""Small random models of every library that has an adapter, built offline, each with what a conformance test must know."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from param_features.params import all_parameters
from tests.models import Classifier, hooked_transformer, randomised

D_VOCAB, N_CTX = 20, 12


def lens_major() -> int:
    """TransformerLens' major version, 0 without it."""
    try:
        return int(version("transformer_lens").partition(".")[0])
    except PackageNotFoundError:
        return 0


class Language(nn.Module):
    """The reference: a plain module from tokens to logits, whose positions influence later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))
        self.embed, self.mix, self.norm = nn.Embedding(D_VOCAB, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.lm_head = nn.Linear(6, D_VOCAB, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.lm_head(self.norm(x.cumsum(1) + self.scale * torch.tanh(self.mix(x))))


def tokenizer():
    """A word tokenizer in memory: " w4" is token 4; every text begins with "<s>", token 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", *(f"\u2581w{number}" for number in range(4, D_VOCAB))]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, name_or_path="x", add_bos_token=True, **special)


def hf_gpt2(*, dtype: torch.dtype = torch.float64, **changes):
    """GPT-2: fused queries, keys and values; embedding and logits tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": D_VOCAB, "n_positions": N_CTX}
    return seeded(GPT2LMHeadModel, GPT2Config(**settings, bos_token_id=1, eos_token_id=2, **changes), dtype=dtype)


def hf_gpt_neo(*, dtype: torch.dtype = torch.float64):
    """GPT-Neo: separate projections, no bias at queries and keys; its attention computes in float32."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    settings = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "vocab_size": D_VOCAB, "window_size": 4}
    kinds = [[["global", "local"], 1]]
    config = GPTNeoConfig(**settings, max_position_embeddings=N_CTX, attention_types=kinds, bos_token_id=1, eos_token_id=2)
    return seeded(GPTNeoForCausalLM, config, dtype=dtype)


def hf_llama(*, dtype: torch.dtype = torch.float64, **changes):
    """Llama: grouped-query attention, gated MLP, RMSNorm in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    config = LlamaConfig(**settings, intermediate_size=24, vocab_size=D_VOCAB, max_position_embeddings=N_CTX, **changes)
    return seeded(LlamaForCausalLM, config, dtype=dtype)


def seeded(build: Callable, *settings: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model whose weights are the same at every call, no gain 1 and no bias 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(build(*settings)).to(dtype)


def booted(build: Callable, *, compatible: bool = False, dtype: torch.dtype = torch.float64):
    """TransformerLens' bridge over a Hugging Face model."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "any", hf_model=build(dtype=torch.float32), tokenizer=tokenizer(), device="cpu"
    )
    return _bridge(bridge, compatible, dtype)


def native(*, compatible: bool = False):
    """A bridge without a Hugging Face model."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    settings = {"d_model": 16, "d_head": 8, "n_layers": 2, "n_ctx": N_CTX, "n_heads": 2, "d_mlp": 24, "act_fn": "gelu"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**settings, d_vocab=D_VOCAB))
    # `randomised` sees only what the bridge's own parameters() lists.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in all_parameters(bridge):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return _bridge(bridge, compatible, torch.float64)


def _bridge(bridge: Any, compatible: bool, dtype: torch.dtype):
    if compatible:
        bridge.enable_compatibility_mode()
    bridge = bridge.to(dtype).eval()
    bridge.run_with_cache(torch.zeros(1, 2, dtype=torch.long))  # at first use a bridge hangs hooks of its own
    return bridge


def hooked(**changes):
    """A HookedTransformer with a tokenizer."""
    if lens_major() >= 4:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    model = hooked_transformer(**changes)
    model.set_tokenizer(tokenizer())
    return model


def hooked_gpt2():
    """A HookedTransformer with the weights of `hf_gpt2`, brought over by TransformerLens' own code."""
    settings = {"d_mlp": 64, "act_fn": "gelu_new"}
    return _converted("convert_gpt2_weights", hf_gpt2, hooked(**settings))


def hooked_llama():
    """The same for `hf_llama`."""
    settings = {"n_heads": 4, "n_key_value_heads": 2, "d_head": 4, "act_fn": "silu", "gated_mlp": True, "eps": 1e-6}
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": False}
    return _converted(
        "convert_llama_weights", hf_llama, hooked(**settings, **rotary, normalization_type="RMS", final_rms=True)
    )


def _converted(convert: str, build: Callable, model: Any):
    from transformer_lens.pretrained import weight_conversions

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # biases that the checkpoint lacks
    model.load_state_dict(getattr(weight_conversions, convert)(build(), model.cfg), strict=False)
    return model


def wrapped_by_nnsight(kind: str, build: Callable = hf_gpt2, **settings):
    """An nnsight wrapper over a Hugging Face model."""
    import nnsight

    return getattr(nnsight, kind)(build(), **settings)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        build: Makes it; the same weights every time.
        params: A subset to try things on; the first is decomposed.
        library: What must be installed.
        tolerance: Relative gap that rounding may make between two right gradients.
        has_tokenizer: Whether the model carries one.
        takes_tokens: Whether its inputs are tokens.
    """

    build: Callable[[], Any]
    params: tuple[str, ...]
    library: str = "torch"
    tolerance: float = 1e-9
    has_tokenizer: bool = False
    takes_tokens: bool = True

    def data(self, n_rows: int) -> dict[str, Tensor]:
        """The same inputs every time, as `pf.decompose` takes them."""
        generator = torch.Generator().manual_seed(1)
        if self.takes_tokens:
            return {"tokens": torch.randint(D_VOCAB, (n_rows, 8), generator=generator)}
        return {"inputs": torch.randn(n_rows, 1, 6, 6, generator=generator, dtype=torch.float64)}


_LENS = ("blocks.0.attn.W_K", "blocks.1.mlp.W_out", "blocks.1.ln1.w")
_FOLDED = ("blocks.0.attn.W_K", "blocks.1.mlp.b_out", "blocks.1.attn.W_O")
_FUSED = ("transformer.h.0.attn.c_attn.weight[k]", "transformer.h.1.mlp.c_proj.weight", "transformer.h.1.ln_1.bias")
_NEO = ("transformer.h.0.attn.attention.k_proj.weight", "transformer.h.1.mlp.c_fc.bias", "transformer.wte.weight")
_LLAMA = ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.gate_proj.weight", "model.norm.weight")
_PLAIN = ("mix.weight", "embed.weight", "norm.bias")


def _bridges() -> dict[str, Entry]:
    """Each bridge, raw and in compatibility mode; Llama's must then stay in float32."""
    kinds = {
        "gpt2": (hf_gpt2, torch.float64, 1e-9),
        "gpt-neo": (hf_gpt_neo, torch.float64, 1e-5),
        "llama": (hf_llama, torch.float32, 1e-5),
    }
    found = {}
    common = {"library": "transformer_lens", "has_tokenizer": True}
    for name, (build, compatible_dtype, tolerance) in kinds.items():
        found[f"bridge {name}"] = Entry(lambda b=build: booted(b), _LENS, tolerance=tolerance, **common)
        found[f"bridge {name} in compatibility mode"] = Entry(
            lambda b=build, d=compatible_dtype: booted(b, compatible=True, dtype=d),
            ("blocks.0.attn.W_K", "embed.W_E", "blocks.1.attn.W_O") if name == "llama" else _FOLDED,
            tolerance=tolerance,
            **common,
        )
    found["bridge native"] = Entry(native, _LENS, library="transformer_lens")
    found["bridge native in compatibility mode"] = Entry(
        lambda: native(compatible=True), _FOLDED, library="transformer_lens"
    )
    return found


ZOO: dict[str, Entry] = {
    "plain module": Entry(lambda: seeded(Language), _PLAIN),
    "classifier": Entry(
        lambda: Classifier().double().eval(), ("conv.weight", "norm.weight", "classifier.bias"), takes_tokens=False
    ),
    "hooked": Entry(hooked, _LENS, "transformer_lens", has_tokenizer=True),
    "hooked grouped-query": Entry(
        lambda: hooked(n_heads=4, n_key_value_heads=2), _LENS, "transformer_lens", has_tokenizer=True
    ),
    "hooked gpt2": Entry(hooked_gpt2, _LENS, "transformer_lens", has_tokenizer=True),
    "hooked llama": Entry(hooked_llama, _LENS, "transformer_lens", has_tokenizer=True),
    **_bridges(),
    "hf gpt2 sdpa": Entry(lambda: hf_gpt2(attn_implementation="sdpa"), _FUSED, "transformers"),
    "hf gpt2 eager": Entry(lambda: hf_gpt2(attn_implementation="eager"), _FUSED, "transformers"),
    "hf gpt-neo": Entry(hf_gpt_neo, _NEO, "transformers", tolerance=1e-5),
    "hf llama sdpa": Entry(lambda: hf_llama(attn_implementation="sdpa"), _LLAMA, "transformers", tolerance=1e-5),
    "nnsight NNsight": Entry(lambda: wrapped_by_nnsight("NNsight"), _FUSED, "nnsight"),
    "nnsight NNsight llama": Entry(lambda: wrapped_by_nnsight("NNsight", hf_llama), _LLAMA, "nnsight", tolerance=1e-5),
    "nnsight LanguageModel": Entry(
        lambda: wrapped_by_nnsight("LanguageModel", tokenizer=tokenizer()), _FUSED, "nnsight", has_tokenizer=True
    ),
    "nnsight TransformersModel": Entry(
        lambda: wrapped_by_nnsight("TransformersModel", tokenizer=tokenizer(), task="text-generation"),
        _FUSED,
        "nnsight",
        has_tokenizer=True,
    ),
    "torch.compile": Entry(lambda: torch.compile(seeded(Language)), _PLAIN),
    "DataParallel": Entry(lambda: nn.DataParallel(seeded(Language)), _PLAIN),
}


@cache
def shared(name: str) -> Any:
    """The model of that name, built once: put back whatever you change. Skips where its library is missing."""
    pytest.importorskip(ZOO[name].library)
    return fresh(name)


def fresh(name: str) -> Any:
    """A model of that name of your own."""
    pytest.importorskip(ZOO[name].library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own notices while they build
        return ZOO[name].build()


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything about a module that a run could disturb."""
    children = list(module.modules())
    held = [(id(m), key, value) for m in children for key, value in (*m._parameters.items(), *m._buffers.items())]
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "objects": [(owner, key, id(value)) for owner, key, value in held],
        "requires_grad": [value is not None and value.requires_grad for *_, value in held],
        "modes": [m.training for m in children],
        "hooks": [[len(getattr(m, table)) for table in tables] for m in children],
        "values": [None if value is None else value.detach().clone() for *_, value in held],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two snapshots of one module are equal bit for bit."""
    for key in before.keys() - {"values"}:
        assert before[key] == after[key], key
    for old, new in zip(before["values"], after["values"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)
