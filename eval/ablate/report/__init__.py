"""The report of a study: what its results say, and how that is written and drawn."""

from eval.ablate.report.write import write_report

__all__ = ["write_report"]
