"""`--model`: a folder, a name on the Hugging Face hub, or the embedded model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from param_features import demo
from param_features.errors import MissingExtraError, SettingError, SourceError
from param_features.files.hub import local_path
from param_features.params import adapter_for

DEMO = "demo"
_TOKENIZER_FILES = ("token*", "vocab*", "*.model")
Library = Literal["hf", "transformer-lens"]
Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how to load it.

    Attributes:
        name: A folder, a hub name, or `"demo"`.
        library: Whose model to make of it; the embedded model is always TransformerLens'.
        device: As torch names it.
        dtype: `"auto"` is that of the checkpoint.
    """

    name: str
    library: Library = "hf"
    device: str = "cpu"
    dtype: Dtype = "auto"

    @property
    def is_demo(self) -> bool:
        """Whether it is the embedded model; a folder of that name is `./demo`."""
        return self.name == DEMO


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer; the tokenizer is None where there is none."""

    model: Any
    tokenizer: Any

    @property
    def n_ctx(self) -> int | None:
        """The model's context length."""
        return adapter_for(self.model).n_ctx


def load_model(source: ModelSource) -> LoadedModel:
    """Load a model for inference; a folder is read without any look at the network.

    Whatever libraries print goes to the error stream.

    Raises:
        SourceError: The folder holds no language model, or the hub does not give one of that name.
        MissingExtraError: transformers or TransformerLens is not installed.
        SettingError: There is no such device.
    """
    _check_device(source.device)
    with redirect_stdout(sys.stderr):
        if source.is_demo:
            model = demo.load_model()
            return LoadedModel(model if source.device == "cpu" else model.to(source.device), model.tokenizer)
        path = local_path(source.name)
        if path is not None:
            _check_folder(path)
        loaded = _load_hf(str(path or source.name), source, is_local=path is not None)
        return loaded if source.library == "hf" else _bridged(loaded, source)


def _load_hf(place: str, source: ModelSource, *, is_local: bool) -> LoadedModel:
    """Load model and tokenizer by transformers.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: They cannot be read.
    """
    try:
        from transformers import AutoModelForCausalLM as Auto
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(
            f'--model {place} needs transformers, and the import failed: {error}. Run: pip install "param_features[hf]".'
        ) from error
    try:
        with _silenced(logging):
            loaded: Any = Auto.from_pretrained(
                place,
                local_files_only=is_local,
                trust_remote_code=False,  # left out, transformers would ask on the terminal whether to run a folder's code
                dtype=source.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `_check_complete` refuses them by name
            )
    except Exception as error:  # whatever a broken folder makes transformers raise
        raise SourceError(f"{_titled(place, is_local)} cannot be loaded as a language model: {error or error!r}") from error
    model, loading_info = loaded
    _check_complete(loading_info, place)
    return LoadedModel(model.eval().to(source.device), _load_tokenizer(place, is_local=is_local))


@contextmanager
def _silenced(logging: Any) -> Iterator[None]:
    """Silence transformers' progress bar and its report of missing weights, which `_check_complete` refuses in one line."""
    had_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _load_tokenizer(place: str, *, is_local: bool) -> Any:
    """Load the tokenizer; None where the folder holds none.

    Raises:
        SourceError: It cannot be read.
    """
    from transformers import AutoTokenizer

    if is_local and not any(file for pattern in _TOKENIZER_FILES for file in Path(place).glob(pattern)):
        return None
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=is_local, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise SourceError(f"{_titled(place, is_local)}: its tokenizer cannot be read: {error!r}") from error


def _bridged(loaded: LoadedModel, source: ModelSource) -> LoadedModel:
    """The loaded model in TransformerLens' bridge, which versions 3 and 4 both have; its weights raw, as trained.

    Raises:
        MissingExtraError: TransformerLens is not installed.
        SourceError: It has no bridge for this architecture.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise MissingExtraError(
            "--library transformer-lens needs TransformerLens from 3.9 up, and the import failed: "
            f'{error}. Run: pip install "param_features[lens]".'
        ) from error
    if loaded.tokenizer is None:  # the bridge would look for one on the hub
        raise SourceError(
            f"{source.name!r} holds no tokenizer, which --library transformer-lens needs. Save one there, or take "
            "--library hf."
        )
    dtype = next(loaded.model.parameters()).dtype
    try:
        bridge = TransformerBridge.boot_transformers(
            source.name, hf_model=loaded.model, tokenizer=loaded.tokenizer, device=source.device, dtype=dtype
        )
    except ValueError as error:
        raise SourceError(f"TransformerLens has no bridge for {source.name!r}: {error} Take --library hf.") from error
    return LoadedModel(bridge.eval(), loaded.tokenizer)


def _check_folder(path: Path) -> None:
    """Refuse what cannot be a saved model before any library is imported.

    Raises:
        SourceError: It is a file, or a folder without `config.json`.
    """
    if not path.is_dir():
        raise SourceError(f"--model {path} is a file. Give the folder that holds config.json and the weights.")
    if not (path / "config.json").is_file():
        raise SourceError(
            f"--model {path} is a folder without config.json, so it holds no Hugging Face model. Give a folder that "
            "save_pretrained wrote, a hub name, or 'demo'."
        )
    if not any(path.glob("*.safetensors*")) and not any(path.glob("*.bin*")):
        raise SourceError(f"--model {path} holds config.json and no weights (*.safetensors). Copy them there.")


def _check_complete(loading_info: dict[str, Any], place: str) -> None:
    """Refuse weights that transformers would have drawn at random.

    Raises:
        SourceError: Weights are missing or have another shape; the message names some of them.
    """
    random = sorted({*map(str, loading_info["missing_keys"]), *(str(key) for key, *_ in loading_info["mismatched_keys"])})
    if random:
        shown = ", ".join(random[:3]) + (" …" if len(random) > 3 else "")
        raise SourceError(
            f"{place!r} lacks {len(random)} of its model's weights, or has them in another shape ({shown}): they would be "
            "random. Give a checkpoint that holds every weight of a causal language model."
        )


def _check_device(device: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        SettingError: torch cannot; the message says why.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"--device {device} cannot be used: {reason}. Take cpu, or a device of this machine.") from error


def _titled(place: str, is_local: bool) -> str:
    return f"The folder {place!r}" if is_local else f"{place!r} of the Hugging Face hub"
