"""The type checker that jaxtyping's import hook runs: beartype set up as in `param_features.typed`.

It stands here too because the hook needs it before the package can be imported.
"""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_random=False, is_pep484_tower=True))
