"""A small convolutional network on real images: scikit-learn's handwritten digits, whose labels are known."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from param_features.errors import MissingExtraError, SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.measure.controls import random_like
from param_features.measure.ranking import auroc
from param_features.toys.planted_toy import DRAWS
from param_features.toys.toy import Toy
from param_features.toys.training import first_complete, trained

_TOLD = 0.9
_ACCURACY = 0.95
_N_TRAINED = 1000


class SmallCNN(nn.Module):
    """Two convolutions and a linear head: 3,800 parameters."""

    def __init__(self) -> None:
        """8×8 grey images to 10 logits."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        """[batch 1 8 8] to [batch 10]."""
        x = torch.relu(self.conv1(images))
        return self.head(torch.relu(self.conv2(x)).flatten(1))


@dataclass(frozen=True)
class DigitScores:
    """How many digits have a feature that tells them from the others.

    For each digit the feature is the one whose |activation| has the largest area under ROC for "is this digit" on one half
    of the held-out images; the area is measured on the other half.

    Attributes:
        told: Digits with an area of at least 0.9.
        auroc: Mean area over the digits.
        told_random: `told` by random directions of the features' shapes; a mean over ten draws.
        auroc_random: Their `auroc`.
        told_shuffled: `told` by the features where the labels are shuffled; a mean over ten draws.
        error: Held-out reconstruction error.
        error_pca: That of the principal directions of the gradients, at the same l0.
        l0: Features kept per sample.
        dead: Features that no held-out sample keeps.
        accuracy: The model's own, on the held-out images.
    """

    told: int
    auroc: float
    told_random: float
    auroc_random: float
    told_shuffled: float
    error: float
    error_pca: float
    l0: float
    dead: int
    accuracy: float

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name."""
        return dict(vars(self))

    def __repr__(self) -> str:
        """One line."""
        return (
            f"{self.told} of 10 digits told (random directions {self.told_random:.1f}, shuffled labels "
            f"{self.told_shuffled:.1f}), mean area {self.auroc:.3f} ({self.auroc_random:.3f}), error {self.error:.3f}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DigitsToy(Toy):
    """A classifier of digits.

    Attributes:
        images: Neither trained nor decomposed on.
        labels: Theirs.
    """

    images: Float[Tensor, "image 1 8 8"]
    labels: Int[Tensor, " image"]

    def score(self, features: ParamFeatures, *, seed: int = 0) -> DigitScores:
        """How many digits the features tell, beside random directions and shuffled labels.

        Args:
            features: A fit of the toy.
            seed: Of the controls.
        """
        generator = torch.Generator().manual_seed(seed)
        numbers = self._activations(features, features.v_in)
        areas = areas_by_digit(numbers, self.labels)
        random = [
            areas_by_digit(self._activations(features, random_like(features.v_in, generator)), self.labels)
            for _ in range(DRAWS)
        ]
        orders = [torch.randperm(len(self.labels), generator=generator) for _ in range(DRAWS)]
        shuffled = [areas_by_digit(numbers, self.labels[order]) for order in orders]
        with torch.no_grad():
            is_right = self.model(self.images).argmax(1) == self.labels
        return DigitScores(
            told=_n_told(areas),
            auroc=float(areas.mean()),
            told_random=sum(map(_n_told, random)) / DRAWS,
            auroc_random=float(torch.stack(random).mean()),
            told_shuffled=sum(map(_n_told, shuffled)) / DRAWS,
            error=features.metrics["reconstruction_error"],
            error_pca=features.metrics["control_pca"],
            l0=features.metrics["l0"],
            dead=int(features.metrics["dead"]),
            accuracy=float(is_right.double().mean()),
        )

    def _activations(self, features: ParamFeatures, v_in: LowRank) -> Float[Tensor, "image feature"]:
        return features.with_directions(v_in).activations(inputs=self.images).abs()


def areas_by_digit(numbers: Float[Tensor, "image feature"], labels: Int[Tensor, " image"]) -> Float[Tensor, " digit"]:
    """Each digit's area under ROC on every second image, by the feature that is best for it on the others."""
    chosen, measured = slice(0, None, 2), slice(1, None, 2)
    areas = []
    for digit in range(10):
        best = auroc(numbers[chosen], labels[chosen] == digit).argmax()
        areas.append(auroc(numbers[measured][:, [best]], labels[measured] == digit)[0])
    return torch.stack(areas)


def _n_told(areas: Float[Tensor, " digit"]) -> int:
    return int((areas >= _TOLD).sum())


@lru_cache(maxsize=64)
def digits(*, n_features: int = 30, n_steps: int = 300, seed: int = 0) -> DigitsToy:
    """A CNN trained on 1,000 of scikit-learn's 1,797 images to at least 95 % accuracy on the others.

    It is decomposed on the images that it was trained on, and scored on the others. Cost: two seconds.

    Args:
        n_features: Features that `decompose` asks for.
        n_steps: Training steps of 256 images.
        seed: Of the split, initial weights and batches.

    Raises:
        SettingError: Sizes are not positive.
        ToyError: No start led to that accuracy.
        MissingExtraError: scikit-learn, which holds the images, is not installed.

    Source: scikit-learn's `load_digits`, from the UCI ML hand-written digits; L3D's own CNN is MobileNet-v3-small.
    """
    if min(n_features, n_steps) < 1:
        raise SettingError(f"n_features={n_features} and n_steps={n_steps} must be positive.")
    images, labels = _load()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    seen, unseen = order[:_N_TRAINED], order[_N_TRAINED:]

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = seen[torch.randint(len(seen), (256,), generator=generator)]
        return images[batch], labels[batch]

    def n_left_out(model: nn.Module) -> int:
        n_wrong = int((model(images[unseen]).argmax(1) != labels[unseen]).sum())
        return n_wrong if n_wrong > (1 - _ACCURACY) * len(unseen) else 0

    model = first_complete(
        lambda: trained(SmallCNN, draw, generator, n_steps=n_steps, loss=nn.functional.cross_entropy),
        n_left_out,
        len(unseen),
        "These are images that the model takes for another digit; ask for more n_steps.",
    )
    return DigitsToy(
        name="handwritten digits",
        model=model,
        params=("conv1.weight", "conv2.weight", "head.weight"),
        inputs=images[seen],
        n_features=n_features,
        l0=2,
        divergence="kl",
        settings={"steps": 300},
        images=images[unseen],
        labels=labels[unseen],
    )


def _load() -> tuple[Float[Tensor, "image 1 8 8"], Int[Tensor, " image"]]:
    """All images, in [0, 1], and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "The digits toy needs scikit-learn, which holds its images, and it cannot be imported. "
            'pip install "param_features[toys]"'
        ) from error
    data, labels = load_digits(return_X_y=True)
    return torch.tensor(data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels, dtype=torch.long)
