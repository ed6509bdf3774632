"""Adapter for sae-lens' sparse autoencoders and transcoders.

An SAE is recognised by the class names in its MRO: sae-lens is imported only to load one, and takes nine seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import AdapterError, MissingExtraError
from param_features.params import class_names

from .autoencoder import SparseAutoencoder

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


def loaded_sae(folder: "str | PathLike", device: torch.device | str) -> Any:
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
            f"sae={str(folder)!r} cannot be loaded: {error or error!r}. Give a folder that save_inference_model wrote, or "
            "one with the ae.pt and config.json of dictionary_learning."
        ) from error


def released_sae(release: str, name: str, device: torch.device | str) -> Any:
    """Fetch an SAE that sae-lens knows by a release and an id.

    Raises:
        MissingExtraError: sae-lens is not installed.
    """
    return sae_lens_library().SAE.from_pretrained(release, name, device=str(device))


@dataclass(frozen=True)
class SaeLensAutoencoder(SparseAutoencoder):
    """An SAE or a transcoder of sae-lens."""

    def __post_init__(self) -> None:
        """Refuse what does not encode sample by sample.

        Raises:
            AdapterError: It is in training, or temporal.
        """
        names = class_names(self.sae)
        if "sae_lens.TrainingSAE" in names:
            raise AdapterError(
                f"sae is a {type(self.sae).__name__}, which is for training: what it encodes depends on the batch. Save "
                "it by sae.save_inference_model(folder) and give the folder."
            )
        if "sae_lens.TemporalSAE" in names:
            raise AdapterError(
                f"sae is a {type(self.sae).__name__}, whose features at a position depend on the positions before it, and "
                "whose decoder gives only what these do not predict. SAEs that read one position at a time are accepted."
            )

    @property
    def n_features(self) -> int:
        """See `SparseAutoencoder`."""
        return self.sae.cfg.d_sae

    @property
    def d_in(self) -> int:
        """See `SparseAutoencoder`."""
        return self.sae.cfg.d_in

    @property
    def d_out(self) -> int:
        """See `SparseAutoencoder`."""
        return self.sae.cfg.d_out if self.is_transcoder else self.d_in

    @property
    def is_transcoder(self) -> bool:
        """See `SparseAutoencoder`."""
        return "sae_lens.Transcoder" in class_names(self.sae)

    @property
    def hook_name(self) -> str | None:
        """See `SparseAutoencoder`."""
        return self.sae.cfg.metadata.hook_name

    @property
    def hook_name_out(self) -> str | None:
        """See `SparseAutoencoder`."""
        return self.sae.cfg.metadata.hook_name_out if self.is_transcoder else self.hook_name

    @property
    def architecture(self) -> str:
        """sae-lens' name of its kind, such as `"jumprelu"`."""
        return self.sae.cfg.architecture()

    def url(self, feature: int) -> str | None:
        """The feature's page on Neuronpedia; None where the metadata names no `neuronpedia_id`."""
        place = self.sae.cfg.metadata.neuronpedia_id
        return f"{_WEBSITE}/{place}/{feature}" if place else None

    @property
    def decoder(self) -> Float[Tensor, "feature d_out"]:
        """See `SparseAutoencoder`."""
        return self.sae.W_dec.detach()

    @property
    def bias(self) -> Float[Tensor, " d_out"]:
        """See `SparseAutoencoder`."""
        return self.sae.b_dec.detach()

    def codes(self, acts: Float[Tensor, "sample d_in"]) -> Float[Tensor, "sample feature"]:
        """See `SparseAutoencoder`."""
        with _reading_flat(self.sae):
            codes = self.sae.encode(acts)
        return codes.to_dense() if codes.is_sparse else codes

    def decoded(self, codes: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample d_out"]:
        """See `SparseAutoencoder`."""
        with _reading_flat(self.sae):
            return self.sae.decode(codes)

    def skipped(self, acts: Float[Tensor, "*sample d_in"]) -> Float[Tensor, "*sample d_out"] | None:
        """See `SparseAutoencoder`."""
        weight = getattr(self.sae, "W_skip", None)
        return None if weight is None else acts.to(weight) @ weight.detach().T


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
