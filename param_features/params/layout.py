"""How a named tensor lies inside the tensor that the model stores: its axes arranged otherwise, and perhaps only part of it.

A bridge stores the heads of W_K side by side in a linear layer; a fused matrix holds queries, keys and values in one.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Reads a named tensor out of a stored one and writes it back; differentiable, under functorch too.

    Laws: reading what was written gives it back; writing what was read changes nothing; writing twice is writing last.

    Attributes:
        pattern: einops pattern from the stored tensor, such as `"(head o) i -> head i o"`; empty for none.
        sizes: Lengths of axes that the pattern cannot know, such as `(("head", 4),)`.
        part: Start and stop along `axis` of what the pattern gives, None for all of it.
        axis: Which axis the part is taken of.
    """

    pattern: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    part: tuple[int, int] | None = None
    axis: int = 0

    def read(self, stored: Tensor) -> Tensor:
        """The named tensor: the stored one itself, or a view or copy of it."""
        arranged = self._arranged(stored)
        if self.part is None:
            return arranged
        start, stop = self.part
        return arranged.narrow(self.axis, start, stop - start)

    def write(self, value: Tensor, stored: Tensor) -> Tensor:
        """The stored tensor with `value` in its place; a new tensor, or `value` itself where it is all there is."""
        if self.part is not None:
            arranged = self._arranged(stored)
            value = arranged.slice_scatter(value.to(arranged.dtype), self.axis, *self.part)
        if not self.pattern:
            return value
        left, right = self.pattern.split("->")
        return rearrange(value, f"{right} -> {left}", **dict(self.sizes))

    def _arranged(self, stored: Tensor) -> Tensor:
        return rearrange(stored, self.pattern, **dict(self.sizes)) if self.pattern else stored


WHOLE = Layout()
"""A tensor as it is stored, whole and with its axes as they are."""
