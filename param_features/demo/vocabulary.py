"""The tokens of the demo stories and their ids, kept in the tokenizer file beside the model's weights."""

import json
from functools import cache
from pathlib import Path

MODEL_DIR = Path(__file__).with_name("model")
WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.json"

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"


@cache
def read_vocabulary() -> dict[str, int]:
    """Token ids as the shipped tokenizer has them; read once, so do not change the dict."""
    tokenizer = json.loads((MODEL_DIR / TOKENIZER_FILE).read_text(encoding="utf-8"))
    return tokenizer["model"]["vocab"]
