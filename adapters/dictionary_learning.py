"""Adapter for the autoencoders of dictionary_learning: its objects, and folders with `ae.pt` and `config.json`.

An object is recognised by the class names in its MRO, and its own `encode` is called. A folder is read without the library:
weights only, so that no code of the file runs.

Source: saprmarks/dictionary_learning 0.1.0, `dictionary.py`, `trainers/`, and `utils.load_dictionary`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import AdapterError, nearest
from param_features.params import class_names

from .autoencoder import SparseAutoencoder

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
_BATCHED = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_PLACE = re.compile(r"resid_post_layer_(\d+)")

State = Mapping[str, Tensor]
"""The tensors of a file, by the library's names."""


@dataclass(frozen=True)
class DictionaryAutoencoder(SparseAutoencoder):
    """A dictionary of dictionary_learning, or what was read from its folder."""

    def __post_init__(self) -> None:
        """Refuse what does not encode sample by sample, or has no weights.

        Raises:
            AdapterError: It reads several places, is the identity, or its threshold was never set.
        """
        if _decoder_of(self.sae) is None:
            raise AdapterError(
                f"sae is a {self.architecture} of dictionary_learning. Accepted: {', '.join(_KINDS)}, which read one place."
            )
        threshold = getattr(self.sae, "threshold", None)
        if self.architecture in _BATCHED and (threshold is None or float(threshold) < 0):
            raise AdapterError(
                f"This {self.architecture} of dictionary_learning has no threshold: it was saved before the training step "
                "threshold_start_step, so what it keeps depends on the batch. Train it longer, or set its threshold."
            )

    @property
    def n_features(self) -> int:
        """See `SparseAutoencoder`."""
        return self.decoder.shape[0]

    @property
    def d_in(self) -> int:
        """See `SparseAutoencoder`."""
        return self.decoder.shape[1]

    @property
    def hook_name(self) -> str | None:
        """Where a folder's record says that it was trained; None for an object, and for places that it does not name."""
        return getattr(self.sae, "hook_name", None)

    @property
    def architecture(self) -> str:
        """The library's name of the class, such as `"BatchTopKSAE"`."""
        return self.sae.kind if isinstance(self.sae, StoredDictionary) else type(self.sae).__name__

    @property
    def decoder(self) -> Float[Tensor, "feature d_out"]:
        """See `SparseAutoencoder`."""
        return _decoder_of(self.sae)

    @property
    def bias(self) -> Float[Tensor, " d_out"]:
        """See `SparseAutoencoder`."""
        with torch.no_grad():
            return self.decoded(self.decoder.new_zeros(1, self.n_features))[0]

    def codes(self, acts: Float[Tensor, "sample d_in"]) -> Float[Tensor, "sample feature"]:
        """See `SparseAutoencoder`."""
        return self.sae.encode(acts.to(self.decoder))

    def decoded(self, codes: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample d_out"]:
        """See `SparseAutoencoder`."""
        return self.sae.decode(codes)


def _decoder_of(ae: Any) -> Any:
    """Take the matrix of what the features write; None where there is no such matrix."""
    weight = getattr(ae, "W_dec", None)
    if weight is None and isinstance(transposed := getattr(getattr(ae, "decoder", None), "weight", None), Tensor):
        weight = transposed.mT
    return weight.detach() if isinstance(weight, Tensor) and weight.dim() == 2 else None


def is_dictionary(candidate: Any) -> bool:
    """Whether it is a dictionary of dictionary_learning, of any class."""
    return "dictionary_learning.Dictionary" in class_names(candidate)


def is_dictionary_folder(folder: str | PathLike) -> bool:
    """Whether a folder holds the weights of a dictionary of dictionary_learning."""
    return (Path(folder) / _WEIGHTS).is_file()


def loaded_dictionary(folder: str | PathLike, device: torch.device | str) -> DictionaryAutoencoder:
    """Load the dictionary in a folder as the library does, without the library.

    Raises:
        AdapterError: A file is missing or broken, the class is unknown, or a tensor is missing or of another shape.
    """
    config, weights = Path(folder) / _CONFIG, Path(folder) / _WEIGHTS
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
        trainer = record["trainer"]
        kind = str(trainer["dict_class"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(
            f"{str(config)!r} cannot be read: {error!r}. Beside {_WEIGHTS}, dictionary_learning writes a {_CONFIG} whose "
            "trainer names dict_class. Copy it there, or give the loaded object."
        ) from error
    if kind not in _KINDS:
        raise AdapterError(
            f"{str(config)!r} names dict_class={kind!r}. Accepted: {', '.join(_KINDS)}; nearest: {nearest(kind, _KINDS)}."
        )
    try:
        state = torch.load(weights, map_location=device, weights_only=True)
        stored = _KINDS[kind](kind, _tensors(state), trainer)
        stored.check()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        raise AdapterError(
            f"{str(weights)!r} holds no {kind} of dictionary_learning: {error or repr(error)}. Give the folder that its "
            "trainSAE wrote, or the loaded object."
        ) from error
    stored.hook_name = _place(trainer, record.get("buffer"))
    return DictionaryAutoencoder(stored)


@dataclass
class StoredDictionary:
    """A dictionary as its file holds it.

    Attributes:
        kind: The library's class.
        W_enc: Encoder, [d_in feature].
        b_enc: Its bias.
        W_dec: Decoder, [feature d_in].
        b_dec: Its bias.
        activation: From what the encoder reads to codes.
        reads_centred: Whether the decoder's bias is taken from what is read.
        threshold: Least activation that is kept; None where the kind has none.
        hook_name: Where it was trained.
    """

    kind: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    activation: Callable[[Tensor], Tensor] = torch.relu
    reads_centred: bool = True
    threshold: Tensor | None = None
    hook_name: str | None = None

    def encode(self, acts: Float[Tensor, "sample d_in"]) -> Float[Tensor, "sample feature"]:
        """Activations of all features."""
        return self.activation((acts - self.b_dec if self.reads_centred else acts) @ self.W_enc + self.b_enc)

    def decode(self, codes: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample d_in"]:
        """What the features write."""
        return codes @ self.W_dec + self.b_dec

    def check(self) -> None:
        """Refuse tensors that do not fit together.

        Raises:
            ValueError: The first that does not.
        """
        d_in, n_features = self.W_enc.shape
        shapes = {"decoder": (self.W_dec, (n_features, d_in)), "encoder's bias": (self.b_enc, (n_features,))}
        shapes |= {"decoder's bias": (self.b_dec, (d_in,))}
        for name, (tensor, shape) in shapes.items():
            if tensor.shape != shape:
                raise ValueError(f"the {name} has shape {tuple(tensor.shape)}, and {shape} goes with the encoder")
        if self.threshold is not None and self.threshold.shape not in ((), (n_features,)):
            raise ValueError(f"the threshold has shape {tuple(self.threshold.shape)}")


def _tensors(state: Any) -> State:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"it holds a {type(state).__name__}, which is no state_dict")
    return {name: value.detach().float() if value.is_floating_point() else value for name, value in state.items()}


def _place(trainer: Mapping[str, Any], buffer: Any) -> str | None:
    """Name the hook point where the record says that the output of a block was read."""
    name = _PLACE.fullmatch(str(trainer.get("submodule_name")))
    is_output = not isinstance(buffer, Mapping) or buffer.get("io", "out") == "out"
    return f"blocks.{name[1]}.hook_resid_post" if name and is_output else None


def _standard(kind: str, state: State, trainer: Mapping[str, Any]) -> StoredDictionary:
    """Scale features to unit norm, as the library does when it loads."""
    norm = state["decoder.weight"].norm(dim=0)
    norm = torch.where(norm > 0, norm, 1.0)
    weights = (state["encoder.weight"].T * norm, state["encoder.bias"] * norm, state["decoder.weight"].T / norm[:, None])
    return StoredDictionary(kind, *weights, state["bias"])


def _new(kind: str, state: State, trainer: Mapping[str, Any]) -> StoredDictionary:
    return StoredDictionary(kind, *_linear(state), state["decoder.bias"], reads_centred=False)


def _gated(kind: str, state: State, trainer: Mapping[str, Any]) -> StoredDictionary:
    gate, scale, magnitude = state["gate_bias"], state["r_mag"].exp(), state["mag_bias"]

    def gated(read: Tensor) -> Tensor:
        return (read + gate > 0) * torch.relu(scale * read + magnitude)

    weight = state["encoder.weight"].T
    bias = torch.zeros_like(gate)
    return StoredDictionary(kind, weight, bias, state["decoder.weight"].T, state["decoder_bias"], gated)


def _jump_relu(kind: str, state: State, trainer: Mapping[str, Any]) -> StoredDictionary:
    threshold, weights = state["threshold"], (state["W_enc"], state["b_enc"], state["W_dec"], state["b_dec"])
    return StoredDictionary(kind, *weights, _above(threshold), reads_centred=False, threshold=threshold)


def _top_k(kind: str, state: State, trainer: Mapping[str, Any]) -> StoredDictionary:
    k, n_features = int(state["k"] if "k" in state else trainer["k"]), len(state["encoder.bias"])
    if not 0 < k <= n_features:
        raise ValueError(f"k is {k}, and there are {n_features} features")

    def largest(read: Tensor) -> Tensor:
        best = torch.relu(read).topk(k, dim=-1)
        return torch.zeros_like(read).scatter(-1, best.indices, best.values)

    return StoredDictionary(kind, *_linear(state), state["b_dec"], largest)


def _batch_top_k(kind: str, state: State, trainer: Mapping[str, Any]) -> StoredDictionary:
    threshold = state.get("threshold")
    kept = torch.relu if threshold is None else _above(threshold)
    weights = (state["W_enc"], state["b_enc"], state["W_dec"]) if "W_enc" in state else _linear(state)
    return StoredDictionary(kind, *weights, state["b_dec"], kept, threshold=threshold)


def _linear(state: State) -> tuple[Tensor, Tensor, Tensor]:
    return state["encoder.weight"].T, state["encoder.bias"], state["decoder.weight"].T


def _above(threshold: Tensor) -> Callable[[Tensor], Tensor]:
    """ReLU that keeps what exceeds a threshold."""
    return lambda read: torch.relu(read) * (read.relu() > threshold)


_KINDS: dict[str, Callable[[str, State, Mapping[str, Any]], StoredDictionary]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
}
"""How the file of each class is read."""
