"""The adapter interface: what the core asks of a foreign model, and nothing more."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from param_features.errors import AdapterError, ModelStateError, OutputError
from param_features.params.attention import Attention
from param_features.params.text import ids_of, strings_of
from param_features.params.views import ParamView, Tap


class Adapter(ABC):
    """Reads one model: its parameters, its output, its taps and its tokens.

    Replacing, editing and fingerprinting need only the views and are done by `ParamSubset`.
    """

    given_tokenizer: Any = None
    given_output: Callable[[Any], Tensor] | None = None
    wrapper: str = ""
    refuse: Callable[[], None] | None = None

    def __init__(self, model: Any) -> None:
        """Read `model`; nothing is copied or changed."""
        self.model = model

    def reading(
        self,
        *,
        tokenizer: Any = None,
        output: Callable[[Any], Tensor] | None = None,
        wrapper: str = "",
        refuse: Callable[[], None] | None = None,
    ) -> "Adapter":
        """Return a copy of the adapter that knows what the user says about the model.

        Args:
            tokenizer: A Hugging Face tokenizer, for models that carry none.
            output: Takes what the model returns and gives the tensor to be explained.
            wrapper: Name of what the user's model is wrapped in, for messages.
            refuse: Called before each run; raises where the wrapper makes the model another one than it is by itself.

        Raises:
            AdapterError: `tokenizer` is no tokenizer, or `output` cannot be called.
        """
        if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "batch_decode")):
            raise AdapterError(
                f"tokenizer is a {type(tokenizer).__name__}. Give a Hugging Face tokenizer, such as "
                "transformers.AutoTokenizer.from_pretrained(…)."
            )
        if output is not None and not callable(output):
            raise AdapterError(
                f"output is {output!r}. Give a function of what the model returns, such as lambda out: out[0]."
            )
        changed = copy(self)
        changed.given_tokenizer = self.given_tokenizer if tokenizer is None else tokenizer
        changed.given_output = self.given_output if output is None else output
        changed.wrapper = wrapper or self.wrapper
        changed.refuse = refuse or self.refuse
        return changed

    @property
    def module(self) -> nn.Module:
        """The `nn.Module` whose weights, mode and hooks are looked after."""
        return self.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the user gave, None without one."""
        return self.given_tokenizer

    @abstractmethod
    def fold(self, owner: nn.Module, attribute: str, n_dims: int) -> str:
        """The einops pattern from the parameter's tensor to its `[d_out, d_in]` matrix."""

    @abstractmethod
    def taps(self, view: ParamView) -> tuple[Tap, ...]:
        """Where each use of the parameter shows its input and output gradient; empty for the dense route."""

    @property
    def d_vocab(self) -> int | None:
        """Number of token ids that the model accepts, or None when it takes no tokens."""
        return None

    @property
    def n_ctx(self) -> int | None:
        """Most positions that the model accepts in a sequence, None when not known."""
        return None

    @property
    def configured_padding(self) -> int | None:
        """The token id that the model's configuration calls padding, None when not known."""
        return None

    @property
    def n_layers(self) -> int | None:
        """Number of blocks, None when not known."""
        return None

    @property
    def processing(self) -> str:
        """What the library did to the weights after training, such as folding LayerNorm; empty when nothing is known."""
        return ""

    @property
    def predicts_tokens(self) -> bool:
        """Whether the output is known to be logits over a vocabulary or classes."""
        return False

    def views(self) -> dict[str, ParamView]:
        """Every parameter by the library's own name; tied weights once, under their first name.

        Raises:
            ModelStateError: A lazy layer's parameter has no shape yet.
        """
        places: dict[int, list[tuple[str, nn.Module, str]]] = {}
        for prefix, owner in self.module.named_modules():
            for attribute, parameter in owner._parameters.items():
                if parameter is not None:
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    _refuse_lazy(name, parameter)
                    places.setdefault(id(parameter), []).append((name, owner, attribute))
        views = [self.view(name, owner, key, tuple(further)) for (name, owner, key), *further in places.values()]
        return {view.name: view for view in views}

    def view(
        self, name: str, owner: nn.Module, attribute: str, further: tuple[tuple[str, nn.Module, str], ...]
    ) -> ParamView:
        """The view of one Parameter, given torch's name for it and the further places that hold it."""
        fold = self.fold(owner, attribute, owner.get_parameter(attribute).dim())
        return ParamView(name, owner, attribute, fold, tuple((module, key) for _, module, key in further))

    def parts(self) -> dict[str, ParamView]:
        """Parts of fused matrices that can be chosen alone, by name."""
        return {}

    def aliases(self) -> dict[str, str]:
        """Names that the library's users say, mapped to the library's own; tied weights under their other names."""
        views = self.views()
        view_names = {(id(module), key): view.name for view in views.values() for module, key in view.places}
        names = {
            f"{prefix}.{key}" if prefix else key: view_names.get((id(owner), key))
            for prefix, owner in self.module.named_modules(remove_duplicate=False)
            for key in owner._parameters
        }
        return {name: listed for name, listed in names.items() if listed is not None and name not in views}

    def ties(self) -> dict[str, str]:
        """Other names of weights that several layers share, mapped to the name under which they are listed."""
        views = self.views()
        return {name: real for name, real in self.aliases().items() if len(views[real].places) > 1}

    def attentions(self) -> dict[str, Attention]:
        """How the attention layers make their scores, by the layer's name; those alone of which it is known."""
        return {}

    def peft_names(self) -> dict[nn.Module, str]:
        """Every layer's name in the model that peft wraps; empty where peft can wrap none with these layers."""
        return {owner: name for name, owner in self.module.named_modules()}

    @property
    def is_wrapped_by_peft(self) -> bool:
        """Whether peft wraps this very model: a Hugging Face model."""
        return False

    def hook_points(self) -> dict[str, nn.Module]:
        """Modules whose output can be read or replaced, by the names that the library's users say."""
        return dict(self.module.named_modules(remove_duplicate=False))

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model and return its output tensor: what it returns, or the `.logits` of what it returns."""
        if self.refuse is not None:
            self.refuse()
        return self.tensor_of(self.call(*args, **kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model and return what it returns itself."""
        return self.model(*args, **kwargs)

    def tensor_of(self, output: Any) -> Tensor:
        """The tensor to be explained in what the model returned.

        Raises:
            OutputError: It is neither a tensor nor an object with `.logits`, or the user's `output=` gives no tensor.
        """
        if self.given_output is not None:
            tensor = self.given_output(output)
            if not isinstance(tensor, Tensor):
                raise OutputError(f"output= gave a {type(tensor).__name__}. It must give the tensor to be explained.")
            return tensor
        tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(tensor, Tensor):
            raise OutputError(
                f"{type(self.model).__name__} returned a {type(output).__name__}, which is neither a tensor nor an object "
                "with `.logits`. Say which tensor is meant: output=lambda out: out[0], for example."
            )
        return tensor

    def head(self) -> nn.Module | None:
        """The module that maps the residual stream to the output, each position alone; None when not known."""
        return None

    def head_weights(self) -> tuple[Tensor, Tensor | None] | None:
        """The head's weight [d_output, d_model] and bias; None where it is not known to be one product."""
        head = self.head()
        return (head.weight, head.bias) if type(head) is nn.Linear else None

    @property
    def call_names(self) -> tuple[str, ...]:
        """Names of the arguments of the model's call, in their order; empty where they cannot be read."""
        try:
            return tuple(inspect.signature(self.module.forward).parameters)
        except (TypeError, ValueError):
            return ()

    def output_mask(self, attention_mask: Tensor, n_pos: int) -> Bool[Tensor, "batch pos"] | None:
        """Which of an output's positions are real, given the mask of the inputs; None where the model does not say so."""
        return None

    def padding(self, mask: Bool[Tensor, "batch pos"]) -> dict[str, Any]:
        """Keyword arguments that tell the model which positions are padding.

        Padding on the right needs none in a causal model, whose real positions cannot see it.

        Raises:
            AdapterError: There is padding before real positions, and the adapter knows no way to say so.
        """
        if is_padded_on_the_right(mask):
            return {}
        raise AdapterError(
            f"The tokens are padded on the left, and {type(self.model).__name__} has no known argument for that. Pad on the "
            "right, or pass its own arguments as inputs=."
        )

    def to_ids(self, text: str) -> list[int]:
        """Token ids of a text, with the model's own beginning-of-sequence habit.

        Raises:
            AdapterError: The model has no tokenizer.
        """
        if self.tokenizer is None:
            raise AdapterError(
                f"{type(self.model).__name__} has no tokenizer, so strings cannot be turned into tokens ({text[:40]!r}). "
                "Pass an integer tensor [batch, pos], or tokenizer=."
            )
        return ids_of(self.tokenizer, text)

    def to_strings(self, ids: Sequence[int]) -> list[str]:
        """One string per token id, word spaces kept; the ids themselves where the model has no tokenizer."""
        return [str(token) for token in ids] if self.tokenizer is None else strings_of(self.tokenizer, ids)

    @property
    def description(self) -> str:
        """Library and class, for saved files and messages."""
        named = f"{type(self.model).__module__.partition('.')[0]} {type(self.model).__name__}"
        return f"{named} in {self.wrapper}" if self.wrapper else named


def _refuse_lazy(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ModelStateError(f"{name!r} has no shape yet: it belongs to a lazy layer. Run the model once first.")


def is_padded_on_the_right(mask: Bool[Tensor, "batch pos"]) -> bool:
    """Whether no real position follows a padded one."""
    return not bool((mask[:, 1:] & ~mask[:, :-1]).any())
