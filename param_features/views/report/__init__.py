"""The report: one self-contained page about a fit."""

from param_features.views.report.contents import contents
from param_features.views.report.write import write_report

__all__ = ["contents", "write_report"]
