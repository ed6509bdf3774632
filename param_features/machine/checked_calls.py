"""Run-time checks of shapes, for functions that handle a whole batch or are called less often (about 70 µs a call)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter
from typing import Any


@contextmanager
def _object_as_python_has_it() -> Iterator[None]:
    """Take off `object` the method that nnsight, imported before, put there: importing beartype would fail at it."""
    nnsight, mounting = sys.modules.get("nnsight"), sys.modules.get("nnsight._c.py_mount")
    if nnsight is None or mounting is None or "save" not in vars(object):
        yield
        return
    mounting.unmount("save")
    try:
        yield
    finally:
        mounting.mount(nnsight.save, "save")


with _object_as_python_has_it():
    from beartype import BeartypeConf, beartype
    from beartype.door import is_bearable
    from beartype.roar import BeartypeException
    from jaxtyping import jaxtyped

    # By default beartype picks the list items to check with Python's global random generator, which is the user's.
    _CONF = BeartypeConf(is_random=False, is_pep484_tower=True)
    typed = jaxtyped(typechecker=beartype(conf=_CONF))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation says; yes where that cannot be told."""
    if hint is Parameter.empty or isinstance(hint, str):
        return True
    try:
        return is_bearable(value, hint, conf=_CONF)
    except BeartypeException:  # a forward reference that stands for nothing at run time
        return True
