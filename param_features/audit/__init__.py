"""Audits: claims about features, each measured beside what must not do as well."""

from param_features.audit.settings import AuditSettings
from param_features.audit.table import Audit, AuditRow

__all__ = ["Audit", "AuditRow", "AuditSettings"]
