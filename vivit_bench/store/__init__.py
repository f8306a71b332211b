"""Records, provenance and atomic files."""

from vivit_bench.store.atomic import write_atomic
from vivit_bench.store.differences import differences
from vivit_bench.store.provenance import Provenance, provenance

__all__ = ["Provenance", "differences", "provenance", "write_atomic"]
