"""The adapter interface: what the core asks of a foreign model, and nothing more."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from param_features.errors import AdapterError, OutputError
from param_features.params import ParamView, Tap


class Adapter(ABC):
    """Reads one model: its parameters, its output, its taps and its tokens.

    Replacing, editing and fingerprinting need only the views and are done by `ParamSubset`.
    """

    def __init__(self, model: Any) -> None:
        """Read `model`; nothing is copied or changed."""
        self.model = model

    @property
    def module(self) -> nn.Module:
        """The `nn.Module` whose weights, mode and hooks are looked after."""
        return self.model

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
    def predicts_tokens(self) -> bool:
        """Whether the output is known to be logits over a vocabulary or classes."""
        return False

    def views(self) -> dict[str, ParamView]:
        """Every parameter by the library's own name; tied weights once, under their first name."""
        places: dict[int, list[tuple[str, nn.Module, str]]] = {}
        for prefix, owner in self.module.named_modules():
            for attribute, parameter in owner._parameters.items():
                if parameter is not None:
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    places.setdefault(id(parameter), []).append((name, owner, attribute))
        return {first[0]: self._view(first, rest) for first, *rest in places.values()}

    def _view(self, first: tuple[str, nn.Module, str], rest: list[tuple[str, nn.Module, str]]) -> ParamView:
        name, owner, attribute = first
        fold = self.fold(owner, attribute, owner.get_parameter(attribute).dim())
        return ParamView(name, owner, attribute, fold, tuple((module, key) for _, module, key in rest))

    def aliases(self) -> dict[str, str]:
        """Names that the library's users say, mapped to the library's own; tied weights under their other names."""
        views = self.views()
        held = {(id(module), key): view.name for view in views.values() for module, key in view.places}
        names = {
            f"{prefix}.{key}" if prefix else key: held.get((id(owner), key))
            for prefix, owner in self.module.named_modules(remove_duplicate=False)
            for key in owner._parameters
        }
        return {name: real for name, real in names.items() if real is not None and name not in views}

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's output tensor: what it returns, or the `.logits` of what it returns."""
        return self.tensor_of(self.call(*args, **kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model itself returns."""
        return self.model(*args, **kwargs)

    def tensor_of(self, output: Any) -> Tensor:
        """The tensor in what the model returned.

        Raises:
            OutputError: It is neither a tensor nor an object with `.logits`.
        """
        tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(tensor, Tensor):
            raise OutputError(
                f"{type(self.model).__name__} returned a {type(output).__name__}, which is neither a tensor nor an object "
                "with `.logits`. Wrap the model in a module whose forward returns the tensor to be explained."
            )
        return tensor

    def head(self) -> nn.Module | None:
        """The module that maps the residual stream to the output, each position alone; None when not known."""
        return None

    def to_ids(self, text: str) -> list[int]:
        """Token ids of a text, with the model's own beginning-of-sequence habit.

        Raises:
            AdapterError: The model has no tokenizer.
        """
        raise AdapterError(
            f"{type(self.model).__name__} has no tokenizer, so strings cannot be turned into tokens ({text[:40]!r}). "
            "Pass an integer tensor [batch, pos]."
        )

    def to_strings(self, ids: Sequence[int]) -> list[str]:
        """One string per token id; the ids themselves where the model has no tokenizer."""
        return [str(token) for token in ids]

    @property
    def description(self) -> str:
        """Library and class, for saved files and messages."""
        return f"{type(self.model).__module__.partition('.')[0]} {type(self.model).__name__}"
