"""Tiny random models of many families, and what the library does on each: see docs/reference/model-families.md."""

from tests.families.decoders import DECODERS
from tests.families.encoders import ENCODER_DECODERS, ENCODERS
from tests.families.examination import Examination, Findings
from tests.families.experts import EXPERTS
from tests.families.family import Family
from tests.families.lens import LENS
from tests.families.modules import MODULES
from tests.families.recurrent import RECURRENT
from tests.families.signals import SIGNALS

__all__ = ["FAMILIES", "Examination", "Family", "Findings"]

FAMILIES: tuple[Family, ...] = (
    *DECODERS,
    *EXPERTS,
    *RECURRENT,
    *ENCODERS,
    *ENCODER_DECODERS,
    *SIGNALS,
    *LENS,
    *MODULES,
)
