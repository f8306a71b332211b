"""Records, provenance and atomic files."""

from vivit_bench.store.atomic import check_writable, write_atomic
from vivit_bench.store.differences import differences
from vivit_bench.store.provenance import Provenance, provenance

__all__ = ["Provenance", "check_writable", "differences", "provenance", "write_atomic"]
