"""`ParamFeatures`: what `decompose` returns and `load` gives back; one file for each thing that can be done with it."""

from typing import final

from param_features.features.ablating import AblatedFeatures
from param_features.features.developing import DevelopingFeatures
from param_features.features.sharing import SharedFeatures
from param_features.features.training import TrainableFeatures
from param_features.features.viewing import ShownFeatures


@final
class ParamFeatures(ShownFeatures, AblatedFeatures, TrainableFeatures, DevelopingFeatures, SharedFeatures):
    """Low-rank directions in parameter space, each of which matters for few inputs.

    A feature is a local gradient direction: features need not sum to W. Fields are those of `Fitted`.

    What can be done with features:

    - look at them: `show`, `view`, `show_neurons`, `view_neurons`, `report`;
    - measure them on inputs: `activations`, `codes`, `activation_parts`, `samples`, `densities`, `top_examples`,
      `top_logits`, `errors_by_l0`;
    - change weights along them: `steer`, `ablate`, `edit`, `steered`; and ask what they hold of the weights: `direction`,
      `weight_coefficients`, `residual`;
    - try to refute them: `audit`;
    - use them for a task: `finetune`, `to_lora`;
    - tell training in them: `coordinates`;
    - keep and share them: `save_pretrained`, `save_card`, `push_to_hub`.

    What takes a second thing beside features is a function, such as `pf.compare`, `pf.match`, `pf.circuit` or `pf.plot`.
    """
