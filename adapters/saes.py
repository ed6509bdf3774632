"""`read_sae`: whatever a user gives as an SAE, read by the adapter of its library."""

from os import PathLike
from os.path import expanduser
from typing import Any

import torch

from param_features.errors import AdapterError

from .autoencoder import SparseAutoencoder
from .dictionary_learning import DictionaryAutoencoder, is_dictionary, is_dictionary_folder, loaded_dictionary
from .sae_lens import SaeLensAutoencoder, is_sae, loaded_sae, released_sae


def read_sae(source: Any, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Read whatever the user means by an SAE.

    Args:
        source: An SAE or a transcoder of sae-lens; a folder that `sae.save_model` wrote; a pair (release, id) on the hub; a
            dictionary of dictionary_learning; or a folder with its `ae.pt` and `config.json`.
        device: Where to load it; an SAE that is given stays where it is.

    Raises:
        AdapterError: It is none of these, an SAE that is still in training, or one that reads several positions or places.
        MissingExtraError: It must be loaded by sae-lens, which is not installed.
    """
    if isinstance(source, str | PathLike):
        source = expanduser(source)
        if is_dictionary_folder(source):
            return loaded_dictionary(source, device)
        source = loaded_sae(source, device)
    elif isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, str) for part in source):
        source = released_sae(*source, device)
    if is_dictionary(source):
        return DictionaryAutoencoder(source)
    if is_sae(source):
        return SaeLensAutoencoder(source)
    raise AdapterError(
        f"sae is a {type(source).__name__}. Give an SAE of sae-lens, a folder written by its save_model, a pair "
        "(release, id) that sae_lens.SAE.from_pretrained takes, or a dictionary of dictionary_learning or its folder."
    )
