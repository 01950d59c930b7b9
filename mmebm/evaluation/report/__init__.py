"""`mmebm report`: run folders as one self-contained page."""

from __future__ import annotations

from mmebm.evaluation.report.page import write_report

__all__ = ["write_report"]
