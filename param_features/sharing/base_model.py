"""Which model the features belong to, as the hub calls it, and how a reader gets it."""

from typing import Any

from param_features.errors import SourceError
from param_features.files.hub import is_hub_name, local_path
from param_features.fitted import Fitted

_DEMO = "param_features.demo"
"""What the embedded model's tokenizer is called."""


def base_model_name(features: Fitted) -> str | None:
    """The hub name by which a Hugging Face model says it was loaded; None for folders, other libraries and no model."""
    if features.engine is None:
        return None
    config = getattr(features.engine.adapter.module, "config", None)
    name = getattr(config, "name_or_path", None)
    if not isinstance(name, str) or "/" not in name or not is_hub_name(name):
        return None
    try:
        return name if local_path(name) is None else None
    except SourceError:  # it reads like a path
        return None


def loading_lines(features: Fitted, repo: str, base: str | None) -> str:
    """Python that loads the model, where it is known how, and the features with it."""
    lines = ["import param_features as pf"]
    if _is_demo(features):
        lines += ["", "model = pf.demo.load_model()", f'features = pf.load("{repo}", model=model)']
    elif base is None:
        lines += ["", f'features = pf.load("{repo}", model=model)  # the model whose weights these are']
    else:
        lines += [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{base}").eval()',
            f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
            f'features = pf.load("{repo}", model=model, tokenizer=tokenizer)',
        ]
    return "\n".join([*lines, "features.show(0)"])


def _is_demo(features: Fitted) -> bool:
    tokenizer: Any = None if features.engine is None else features.engine.adapter.tokenizer
    return getattr(tokenizer, "name_or_path", None) == _DEMO
