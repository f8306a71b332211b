"""Where tables and figures get to disk: see `vivit_bench.report.tables`."""

from vivit_bench.report.tables import write_in_all_formats, write_report

__all__ = ["write_in_all_formats", "write_report"]
