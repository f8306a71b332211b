"""The forms of a table: see `vivit_bench.report.tables`."""

from vivit_bench.report.tables import TableFormat

__all__ = ["TableFormat"]
