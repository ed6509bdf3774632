"""How what is shared is to be read, how it can mislead, and what to cite: by kind."""

from dataclasses import dataclass

_HOME = "https://arxiv.org/abs/2504.00194"
_SPD = "https://arxiv.org/abs/2506.20790"


@dataclass(frozen=True)
class HowToRead:
    """What a card says of all fits of a kind.

    Attributes:
        name: What they are called.
        lead: What they are, in a line.
        reading: How to read them, and how they can mislead.
        citation: What to cite.
    """

    name: str
    lead: str
    reading: str
    citation: str


_FEATURES = f"""## How to read them

A sample is one position of a text, or one input. Its gradient says how the output's divergence from a reference output
changes with the decomposed weights. Each feature is a low-rank direction in the space of those weights, chosen so that a few
of them rebuild the gradient of any one sample ([L3D]({_HOME})). A feature's *activation* on a sample is how much of it the
gradient holds, signed. The *reconstruction error* is what the few kept features miss of held-out gradients: 0 is perfect, 1
predicts nothing. Controls are other directions, as many, of which as many are kept.

## How they can mislead

- A feature is a direction of the loss *at these weights*, not a part of them: features need not sum to W, unlike the
  components of SPD or VPD. A long step along one can do something else.
- A control that does as well says that the features show nothing beyond it, however good their examples look.
- Top examples are what a feature is strongest on, picked after the fact. They are no evidence of what it does: steer
  along it (`features.steer`), measure, and try to refute the label (`features.audit`).
- Activations depend on the reference output and on the texts that the features were fitted to. On other text they may
  say little."""
_CITE_FEATURES = """## Citation

The method:

```bibtex
@misc{chrisman2025l3d,
  title         = {Identifying Sparsely Active Circuits Through Local Loss Landscape Decomposition},
  author        = {Brianna Chrisman and Lucius Bushnaq and Lee Sharkey},
  year          = {2025},
  eprint        = {2504.00194},
  archivePrefix = {arXiv}
}
```"""
_COMPONENTS = f"""## How to read them

Each component is a rank-1 part U ⊗ V of one weight matrix. The components of a matrix and one remainder Δ sum to it. A
trained network says of every input how much of each component is needed there: its *importance*, from 0 to 1. What is not
needed may be switched off, wholly or partly and in any combination, without changing the output: that is what was trained,
and what the metrics measure ([SPD]({_SPD})). *D* is how far outputs under masks lie from the model's own. `rounded` keeps
what has an importance above 0 and switches off all else; controls are other parts, as many of which are kept per position.

## How they can mislead

- Importances are a network's guess from activations. An importance of 0 says that the output did not change on the inputs
  that were measured, not that the component does nothing.
- A large Δ, or an `unmasked` D above 0, says that the components are not the matrix.
- A control that does as well says that the components show nothing beyond it, however good their examples look.
- Top examples are where a component is needed most, picked after the fact. They are no evidence of what it does: switch it
  off (`components.ablate`), measure, and try to refute the label (`components.audit`)."""
_CITE_COMPONENTS = """## Citation

The method:

```bibtex
@misc{bushnaq2025spd,
  title         = {Stochastic Parameter Decomposition},
  author        = {Lucius Bushnaq and Dan Braun and Lee Sharkey},
  year          = {2025},
  eprint        = {2506.20790},
  archivePrefix = {arXiv}
}
```"""

READINGS = {
    "features": HowToRead(
        "parameter features",
        "Low-rank directions in a model's weights, each of which matters for few inputs",
        _FEATURES,
        _CITE_FEATURES,
    ),
    "components": HowToRead(
        "components",
        "Rank-1 parts that sum to a model's weight matrices, few of which any input needs",
        _COMPONENTS,
        _CITE_COMPONENTS,
    ),
}
"""Texts by kind of dictionary."""
