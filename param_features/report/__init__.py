"""The report: one self-contained page about a fit."""

from param_features.report.document import contents
from param_features.report.features import report_on
from param_features.report.write import write_report

__all__ = ["contents", "report_on", "write_report"]
