"""Run-time checks of shapes, for functions that handle a whole batch or are called less often (about 70 µs a call)."""

from beartype import beartype
from jaxtyping import jaxtyped

typed = jaxtyped(typechecker=beartype)
