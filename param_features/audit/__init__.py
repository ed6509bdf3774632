"""Audits: claims about features, each measured beside what must not do as well."""

from param_features.audit.refits import check_refit, comparison_fits, refitted, untrained
from param_features.audit.run import run_audit
from param_features.audit.settings import AuditSettings
from param_features.audit.subjects import samples_of
from param_features.audit.table import Audit, AuditRow

__all__ = [
    "Audit",
    "AuditRow",
    "AuditSettings",
    "check_refit",
    "comparison_fits",
    "refitted",
    "run_audit",
    "samples_of",
    "untrained",
]
