"""Adapter for sae-lens' sparse autoencoders: what they read, their features, and where these are described.

An SAE is recognised by the class names in its MRO: sae-lens is imported only to load one, and takes nine seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import AdapterError, FeatureMismatchError, MissingExtraError
from param_features.params import class_names

_CHUNK_NUMBERS = 2**24
_RESHAPING = ("reshape_fn_in", "reshape_fn_out", "d_head", "hook_z_reshaping_mode")
_WEBSITE = "https://neuronpedia.org"


def sae_lens_library() -> Any:
    """Import the sae-lens library.

    Raises:
        MissingExtraError: It cannot be imported.
    """
    try:
        import sae_lens as library
    except ImportError as error:
        raise MissingExtraError(
            f"Loading and training SAEs needs sae-lens, and the import failed: {error}. sae-lens from 6.54 up is accepted, "
            'and needs TransformerLens 3. Run: pip install "param_features[sae]".'
        ) from error
    return library


def is_sae(candidate: Any) -> bool:
    """Whether it is an SAE of sae-lens, of any architecture."""
    return "sae_lens.SAE" in class_names(candidate)


def _loaded(folder: "str | PathLike", device: torch.device | str) -> Any:
    """Load the SAE in a folder.

    Raises:
        AdapterError: It holds none that sae-lens can read.
        MissingExtraError: sae-lens is not installed.
    """
    library = sae_lens_library()
    try:
        return library.SAE.load_from_disk(folder, device=str(device))
    except Exception as error:  # whatever a broken folder makes sae-lens raise
        raise AdapterError(
            f"sae={str(folder)!r} cannot be loaded: {error or error!r}. Give a folder that save_inference_model wrote."
        ) from error


def read_sae(source: Any, device: torch.device | str = "cpu") -> "SparseAutoencoder":
    """Read whatever the user means by an SAE.

    Args:
        source: An SAE of sae-lens; a folder that `sae.save_model` wrote; or a pair (release, id) on the hub.
        device: Where to load it; an SAE that is given stays where it is.

    Raises:
        AdapterError: It is none of these, or an SAE that is still in training.
        MissingExtraError: It must be loaded, and sae-lens is not installed.
    """
    if isinstance(source, str | PathLike):
        source = _loaded(source, device)
    elif isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, str) for part in source):
        source = sae_lens_library().SAE.from_pretrained(*source, device=str(device))
    if not is_sae(source):
        raise AdapterError(
            f"sae is a {type(source).__name__}. Give an SAE of sae-lens, a folder written by its save_model, or a pair "
            "(release, id) that sae_lens.SAE.from_pretrained takes."
        )
    if "sae_lens.TrainingSAE" in class_names(source):
        raise AdapterError(
            f"sae is a {type(source).__name__}, which is for training: what it encodes depends on the batch. Save "
            "it by sae.save_inference_model(folder) and give the folder."
        )
    return SparseAutoencoder(source)


@dataclass(frozen=True)
class SparseAutoencoder:
    """An SAE that reads samples [sample, d_in], whatever its architecture.

    Attributes:
        sae: sae-lens' object.
    """

    sae: Any

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.sae.cfg.d_sae

    @property
    def d_in(self) -> int:
        """How many numbers of each sample the SAE reads."""
        return self.sae.cfg.d_in

    @property
    def hook_name(self) -> str | None:
        """Where in the model it was trained; None where its metadata does not say."""
        return self.sae.cfg.metadata.hook_name

    @property
    def architecture(self) -> str:
        """sae-lens' name of its kind, such as `"jumprelu"`."""
        return self.sae.cfg.architecture()

    @property
    def description(self) -> str:
        """The SAE's architecture and place, for messages."""
        return f"{self.architecture} SAE at {self.hook_name or 'an unnamed place'}"

    def url(self, feature: int) -> str | None:
        """The feature's page on Neuronpedia; None where the metadata names no `neuronpedia_id`."""
        place = self.sae.cfg.metadata.neuronpedia_id
        return f"{_WEBSITE}/{place}/{feature}" if place else None

    def encode(self, acts: Float[Tensor, "sample ..."]) -> Iterator[Float[Tensor, "sample feature"]]:
        """Activations of all features, in chunks of samples that stay below 64 MiB; on the device of `acts`.

        Args:
            acts: The model's activations; all axes but the first together are what the SAE reads.

        Raises:
            FeatureMismatchError: The SAE reads samples of another length.
        """
        for chunk in self._chunks(acts):
            with torch.no_grad(), _reading_flat(self.sae):
                codes = self.sae.encode(chunk)
            dtype = torch.float64 if codes.dtype == torch.float64 else torch.float32
            yield (codes.to_dense() if codes.is_sparse else codes).to(acts.device, dtype)

    @torch.no_grad()
    def reconstruct(self, acts: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample ..."]:
        """What the SAE makes of the activations.

        Raises:
            FeatureMismatchError: The SAE reads samples of another length.
        """
        with _reading_flat(self.sae):
            parts = [self.sae.decode(self.sae.encode(chunk)) for chunk in self._chunks(acts)]
        return torch.cat(parts).reshape(acts.shape).to(acts)

    @property
    def decoder(self) -> Float[Tensor, "feature d_in"]:
        """What one unit of each feature adds to the activations."""
        return self.sae.W_dec.detach()

    def read(self, acts: Float[Tensor, "sample ... d"]) -> tuple[Float[Tensor, "sample ... feature"], Tensor]:
        """Activations of all features and what the SAE makes of them, with gradients to `acts`; heads are joined.

        Raises:
            FeatureMismatchError: The SAE reads samples of another length.
            AdapterError: What it makes of them is not codes · decoder + bias, as where it rescales its input.
        """
        flat = acts if acts.shape[-1] == self.d_in else acts.flatten(-2)
        if flat.shape[-1] != self.d_in:
            self._refuse(acts.shape[1:])
        with _reading_flat(self.sae):
            codes = self.sae.encode(flat)
            codes = codes.to_dense() if codes.is_sparse else codes
            bias = self.sae.b_dec.detach().to(codes)
            rebuilt = codes @ self.decoder.to(codes) + bias
            with torch.no_grad():
                decoded = self.sae.decode(codes.detach())
        if not torch.allclose(decoded, rebuilt.detach().to(decoded), rtol=1e-3, atol=1e-4 * float(decoded.abs().max())):
            raise AdapterError(
                f"The {self.description} does not rebuild activations as codes · W_dec + b_dec (it rescales them, say), so "
                "its features are no parts that add up. Fold the scaling into its weights, or leave it out."
            )
        return codes, rebuilt.reshape(acts.shape).to(acts.dtype)

    def _refuse(self, shape: torch.Size) -> None:
        raise FeatureMismatchError(
            f"The {self.description} reads {self.d_in} numbers, and a sample's activation has shape {tuple(shape)}. Say "
            "hook_name= where the SAE was trained, of this model."
        )

    def _chunks(self, acts: Tensor) -> tuple[Tensor, ...]:
        if prod(acts.shape[1:]) != self.d_in:
            self._refuse(acts.shape[1:])
        return acts.flatten(1).to(self.sae.device).split(max(1, _CHUNK_NUMBERS // self.n_features))


@contextmanager
def _reading_flat(sae: Any) -> Iterator[None]:
    """Run a block in which the SAE takes heads already joined; what it remembers of their shape is put back."""
    before = {name: getattr(sae, name) for name in _RESHAPING if hasattr(sae, name)}
    try:
        sae.turn_off_forward_pass_hook_z_reshaping()
        yield
    finally:
        for name, value in before.items():
            setattr(sae, name, value)
