"""A feature's part in each parameter, by every name that the parameter has."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from param_features.errors import UnknownParameterError

Each = TypeVar("Each")


class Parts(dict[str, Each]):
    """Tensors, or others, by parameter name; `parts[name]` takes aliases: `attn.W_K` for grouped-query `attn._W_K`.

    Copies and pickles are plain dictionaries.
    """

    def __init__(self, parts: Iterable[tuple[str, Each]], aliases: Callable[[], Mapping[str, str]]) -> None:
        """Parts by the features' own names; `aliases` is asked for a name that is not among those."""
        super().__init__(parts)
        self._aliases = aliases

    def __missing__(self, name: str) -> Each:
        """Look a part up under another form of its name.

        Raises:
            UnknownParameterError: No decomposed parameter is called so.
        """
        real = self._aliases().get(name)
        if real is None or real not in self:
            raise UnknownParameterError(f"{name!r} was not decomposed. These were: {', '.join(map(repr, self))}.")
        return self[real]

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Each]]]:
        """Pickle as a plain dictionary, without the way to the model."""
        return dict, (dict(self),)
