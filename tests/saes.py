"""Small SAEs of sae-lens that the tests share."""

import warnings

import pytest
import torch

D_IN, D_SAE = 6, 9
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def sae_library():
    """sae-lens; skips the test without it, as with TransformerLens 4, which it does not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


def sae_of(W_enc, W_dec=None, *, b_enc=None, b_dec=None, hook_name=None, **settings):
    """A standard SAE, ReLU of what W_enc [d_in, d_sae] reads, with given weights."""
    library = sae_library()
    d_in, d_sae = W_enc.shape
    sae = library.StandardSAE(library.StandardSAEConfig(d_in=d_in, d_sae=d_sae, **settings))
    given = {"W_enc": W_enc, "W_dec": W_enc.T if W_dec is None else W_dec, "b_enc": b_enc, "b_dec": b_dec}
    with torch.no_grad():
        for name, value in given.items():
            getattr(sae, name).copy_(torch.zeros(()) if value is None else value)
    if hook_name is not None:
        sae.cfg.metadata.hook_name = hook_name
    return sae


def random_sae(architecture="standard", *, d_in=D_IN, d_sae=D_SAE, seed=0, **settings):
    """A random SAE or transcoder of any architecture, in evaluation mode."""
    library = sae_library()
    config = {"d_in": d_in, "d_sae": d_sae, "architecture": architecture, **settings}
    if "transcoder" in architecture:
        config["apply_b_dec_to_input"] = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = library.SAE.from_dict(config | {"metadata": settings.get("metadata", {})})
        for parameter in sae.parameters():
            parameter.data = torch.randn_like(parameter) * 0.5
        if "jumprelu" in architecture:
            sae.threshold.data.fill_(0.4)
    return sae.eval()
