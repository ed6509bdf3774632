"""`ParamComponents`: what `decompose` returns for `method="components"`, and `load` gives back."""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.features.developing import DevelopingFeatures
from param_features.features.intervening import IntervenedFeatures
from param_features.features.sharing import SharedFeatures
from param_features.features.training import TrainableFeatures
from param_features.features.viewing import ShownFeatures
from param_features.fit.components import ComponentDictionary
from param_features.gradients import at_least_float32
from param_features.intervene import Steering, chosen_features, masks_from_importances, under_masks
from param_features.machine import Block, methods_in_own_modes, public
from param_features.measure import Clusters, find_clusters

_ALIVE = 1e-6


@final
@methods_in_own_modes
class ParamComponents(ShownFeatures, IntervenedFeatures, TrainableFeatures, DevelopingFeatures, SharedFeatures):
    """Rank-1 parts U_c ⊗ V_c of weight matrices, which sum to W with a remainder Δ, and how much inputs need of each.

    What can be done with features can be done with components, by the same methods: an activation, and a code, is an
    importance from 0 to 1, and a direction is a component at unit norm, so that `steer({k: δ})` adds δ of it. What counts
    gradients is refused by name: `errors_by_l0`, `reference=` and `route=`. Fields are those of `Fitted`.

    Of components alone:

    - `inner`, `importances`: what they read, and how much of them is needed;
    - `site`, `component`, `remainder`, `alive`: what they are;
    - `clusters`: those that are needed together;
    - `ablate`, `masked`: the model without some of them, or with what each input needs of them.
    """

    @property
    def components(self) -> ComponentDictionary:
        """U, V and the importance network."""
        return cast(ComponentDictionary, self.dictionary)

    @public
    def inner(self, tokens: Any = None, *, inputs: Any = None) -> Float[Tensor, "*sample component"]:
        """What every component reads at every sample, its inner activation V_cᵀx.

        Args:
            tokens: Integers [batch, pos], or a list of strings.
            inputs: Instead of tokens, anything that the module takes.

        Returns:
            [batch pos component] where outputs have positions, [batch component] otherwise, where it is the largest of the
            matrix's positions; 0 at padding and at positions that are no samples. On the CPU. Cost: a forward pass.

        Raises:
            NotBoundError: The components were loaded without a model.
            InputError: Inputs that the model cannot take.
        """
        return self.readings_on(self.read(tokens, inputs, "inner")).overlaps

    @public
    def importances(self, tokens: Any = None, *, inputs: Any = None) -> dict[str, Float[Tensor, "row _pos _component"]]:
        """How much of each component is needed at every position of its own matrix, by the matrix's name.

        `activations` has the same at samples, numbered through. Arguments and errors are those of `inner`.

        Returns:
            From 0 to 1; the positions are those at which the matrix is applied, pixels of a convolution for example, padding
            with them. On the CPU. Cost: a forward pass.
        """
        engine = self.bound_engine("importances")
        return self.components.by_site(engine, self.read(tokens, inputs, "importances"))[0]

    @public
    def site(self, feature: int) -> tuple[str, int]:
        """The name of a component's matrix, and the component's number among those of that matrix.

        Raises:
            FeatureCountError: There is no such component.
        """
        self.check_feature(feature)
        part = self.components.part_of(feature)
        return part.site, part.number

    @public
    def component(self, feature: int) -> tuple[Float[Tensor, " d_out"], Float[Tensor, " d_in"]]:
        """U_c, what a component writes, and V_c, what it reads; U_c ⊗ V_c is its part of the matrix [d_out, d_in].

        Raises:
            FeatureCountError: There is no such component.
        """
        self.check_feature(feature)
        part = self.components.part_of(feature)
        return part.U, part.V

    @public
    def remainder(self, name: str) -> Float[Tensor, "*shape"]:
        """Δ of one parameter, in its shape: what its components leave of W. New tensor, float32 or better.

        Raises:
            NotBoundError: The components were loaded without a model.
            UnknownParameterError: The parameter was not decomposed.
        """
        engine = self.bound_engine("remainder")
        view = self.named((view.name, view) for view in engine.subset.views)[name]
        weight = at_least_float32(view.to_matrix(view.tensor.detach()))
        return view.from_matrix(self.components.parts[view.name].remainder(weight))

    @public
    def alive(self, tokens: Any = None, *, inputs: Any = None) -> list[int]:
        """The components whose mean importance over samples is above 1e-6; the others are needed nowhere here.

        Args:
            tokens: Where to look; the held-out sequences of the fit by default.
            inputs: Instead of tokens, for modules that take none.

        Raises:
            NotBoundError: The components were loaded without a model.
        """
        importances, _ = self.samples(tokens, inputs=inputs)
        return (importances.double().mean(0) > _ALIVE).nonzero().flatten().tolist()

    @public
    def clusters(
        self, tokens: Any = None, *, inputs: Any = None, above: float = 0.0, rank_cost: float = 1.0, seed: int = 0
    ) -> Clusters:
        """Groups of components, of several matrices as it may be, that are needed together: each of them is one mechanism.

        Groups are joined, two at a time, as long as that shortens a lossless description of which components are needed at
        which samples; independent components are never joined. The same is done with every component's samples permuted by
        themselves: groups that come out there are chance. `print` shows the first twenty groups.

        Cost: a forward pass, and joining: seconds for a thousand components and 20,000 samples.

        Args:
            tokens: Where to look; the held-out sequences of the fit by default. A few thousand positions are usual: a group
                must save more bits than its members' names take.
            inputs: Instead of tokens, for modules that take none.
            above: A component counts as needed where its importance is larger, in [0, 1).
            rank_cost: Bits for each component that is on with its group and not needed; a larger one gives tighter groups.
            seed: Permutes the control's samples.

        Raises:
            SettingError: `above` or `rank_cost` is out of range.
            NotBoundError: The components were loaded without a model.
        """
        if not 0 <= above < 1:
            raise SettingError(f"above={above} must lie in [0, 1): importances above it count as needed.")
        importances, _ = self.samples(tokens, inputs=inputs)
        return find_clusters(importances > above, self.components.sites, rank_cost=rank_cost, seed=seed)

    @public
    def ablate(self, features: Iterable[int], *, strength: float = 1.0, where: Any = None) -> Steering:
        """Run the model without some components, W − Σ U_c ⊗ V_c, in a `with` block that restores every bit.

        The same as `steer` with −‖U_c‖ ‖V_c‖ of each; nested blocks add up.

        Args:
            features: Which ones.
            strength: How much of each goes, 1 for all of it.
            where: Truth values [batch] or [batch, pos], as in `steer`: the components are missing there alone.

        Returns:
            A context manager as `steer` gives.

        Raises:
            FeatureCountError: There is no such component, or none is given.
            SettingError: `strength` is no finite number.
            NotBoundError: The components were loaded without a model.
        """
        numbers = chosen_features(self, features)
        sizes = self.components.sizes
        return self.steer({number: -strength * float(sizes[number]) for number in numbers}, where=where)

    @public
    def masked(
        self,
        tokens: Any = None,
        *,
        inputs: Any = None,
        threshold: float | None = None,
        only: Iterable[int] | None = None,
        remainder: bool = False,
    ) -> Block:
        """Run the model on these inputs with what they need of each component, in a `with` block; no weight is touched.

        The importances are read once, from the model as it is, and act on these rows alone: inside the block run the model
        on the same inputs, whole and without a cache.

        Args:
            tokens: Integers [batch, pos], or a list of strings; the held-out sequences of the fit by default.
            inputs: Instead of tokens, anything that the module takes.
            threshold: Instead of importances as masks: components above it stay whole, others are off. 0 keeps what is
                needed at all, -1 every component.
            only: Components that may stay on; all others are off. All by default.
            remainder: Whether Δ stays on.

        Returns:
            A context manager.

        Raises:
            NotBoundError: The components were loaded without a model.
            InputError: Inputs that the model cannot take; inside the block, the model is run on others.
            FeatureCountError: There is no such component, or `only` is empty.
            SettingError: `threshold` is no number.
        """
        engine, rows = self.bound_engine("masked"), self.inputs_or_examples(tokens, inputs)
        kept = torch.ones(self.n_features)
        if only is not None:
            kept = torch.zeros(self.n_features).index_fill_(0, torch.tensor(chosen_features(self, only)), 1.0)
        masks = masks_from_importances(self.components.by_site(engine, rows)[0], threshold, kept)
        begin = partial(under_masks, engine, self.components, masks, has_remainder=remainder)
        return Block(begin, "components.masked(…)")
