"""Load the demo model into TransformerLens, from data files only and without network."""

import json
import warnings
from typing import TYPE_CHECKING

import torch

from param_features.demo.vocabulary import BOS, CONFIG_FILE, EOS, MODEL_DIR, PAD, TOKENIZER_FILE, UNKNOWN, WEIGHTS_FILE
from param_features.errors import MissingExtraError
from param_features.params import adapter_for

if TYPE_CHECKING:
    from pathlib import Path

    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast


def load_model() -> "HookedTransformer | TransformerBridge":
    """The demo language model: a small transformer trained on the demo stories.

    Weights are as trained: no LayerNorm is folded, nothing is centred. Nothing is downloaded or drawn at random.

    Returns:
        On the CPU in float32 and eval mode, with its tokenizer; `<bos>` is prepended by default. A `HookedTransformer` with
        TransformerLens 3; with TransformerLens 4, which has none, a native `TransformerBridge` with the same weights.

    Raises:
        MissingExtraError: TransformerLens cannot be imported.
    """
    from safetensors.torch import load_file

    architecture = json.loads((MODEL_DIR / CONFIG_FILE).read_text(encoding="utf-8"))["architecture"]
    tokenizer, saved = load_tokenizer(MODEL_DIR / TOKENIZER_FILE), load_file(MODEL_DIR / WEIGHTS_FILE)
    try:
        model = build_model(architecture, tokenizer)
    except MissingExtraError:
        return _bridge(architecture, tokenizer, saved)
    parameters = dict(model.named_parameters())
    model.load_state_dict({**model.state_dict(), **{name: saved[name] for name in parameters}})
    return model.eval()


def _bridge(architecture: dict, tokenizer: "PreTrainedTokenizerFast", saved: dict[str, torch.Tensor]) -> "TransformerBridge":
    """The same model as a native bridge, its unembedding's bias added to it."""
    try:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise MissingExtraError(_advise("transformer_lens", error)) from error
    with torch.random.fork_rng(devices=[]):
        model = TransformerBridge.boot_native(TransformerBridgeConfig(**architecture, device="cpu"), tokenizer=tokenizer)
    model.unembed.original_component.bias = torch.nn.Parameter(torch.zeros(architecture["d_vocab"]))
    with torch.no_grad():
        for name, view in adapter_for(model).views().items():
            view.stored.copy_(view.layout.write(saved[name], view.stored))
    return model.eval()


def build_model(
    architecture: dict, tokenizer: "PreTrainedTokenizerFast | None", *, init_weights: bool = False
) -> "HookedTransformer":
    """An untrained model of the given architecture, on the CPU in float32.

    Args:
        architecture: Keyword arguments of `HookedTransformerConfig`, as config.json holds them.
        tokenizer: Its tokenizer, if it has one.
        init_weights: Draw initial weights from torch's global generator; otherwise they are left to be loaded.

    Returns:
        The model.

    Raises:
        MissingExtraError: TransformerLens cannot be imported, or is a version without `HookedTransformer`.
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise MissingExtraError(_advise("HookedTransformer of TransformerLens 3", error)) from error
    config = HookedTransformerConfig(**architecture, device="cpu", init_weights=init_weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        return HookedTransformer(config, tokenizer=tokenizer)


def load_tokenizer(path: "Path") -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of the demo stories.

    Args:
        path: A tokenizer.json.

    Returns:
        A tokenizer that prepends `<bos>`, and whose tokens joined together give back the text.

    Raises:
        MissingExtraError: transformers cannot be imported.
    """
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingExtraError(_advise("PreTrainedTokenizerFast of transformers", error)) from error
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        name_or_path="param_features.demo",
        add_bos_token=True,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _advise(what: str, error: ImportError) -> str:
    return (
        f"The demo model needs {what}, and the import failed: {error}. transformer-lens from 3.9 up and below 5 is "
        'accepted. Run: pip install "param_features[lens]".'
    )
