"""Training, told in features: what a change of the weights is in their coordinates."""

from typing import Any

from param_features.changes import Coordinates, coordinates
from param_features.fitted import Fitted
from param_features.machine import methods_in_own_modes, public


@methods_in_own_modes
class DevelopingFeatures(Fitted):
    """Features in whose coordinates training can be told."""

    @public
    def coordinates(self, change: Any, *, since: Any = None, seed: int = 0) -> Coordinates:
        """Express a change of the decomposed parameters in features: which it moves along, and how far.

        A feature is a local direction of the model that it was found at: coordinates of weights far from there say less.

        Cost: an eigendecomposition of two n_features² matrices; for the folder of a LoRA, a copy of the model.

        Args:
            change: One of: tensors by parameter name (`{name: p.grad}`, an optimiser's step), others than the decomposed
                ones being ignored; weights (a state dict, a module, or a file of one), with `since`; a LoRA (a
                `peft.PeftModel` or the folder of its files).
            since: The weights before, in the same forms.
            seed: Of the random directions beside which the share stands.

        Returns:
            Steps and overlaps of every feature, and the share of the change that lies in the features' span.

        Raises:
            NotBoundError: The features were loaded without a model.
            UnknownParameterError: A decomposed parameter is not among the names.
            InputError: What is given is no change, has other shapes, or is a LoRA of other parameters.
            NonFiniteError: It holds NaN or infinity.
            StoreError: A file cannot be read.
            MissingExtraError: A LoRA is given and peft cannot be imported.
        """
        return coordinates(self, change, since=since, seed=seed)
