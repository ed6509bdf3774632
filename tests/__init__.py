"""The type checker that jaxtyping's import hook runs: beartype, with an int accepted for a float as PEP 484 has it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
