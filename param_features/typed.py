"""Run-time checks of shapes, for functions that handle a whole batch or are called less often (about 70 µs a call)."""

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

# By default beartype picks the list items to check with Python's global random generator, which is the user's.
typed = jaxtyped(typechecker=beartype(conf=BeartypeConf(is_random=False, is_pep484_tower=True)))
