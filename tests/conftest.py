"""Set before torch is imported: small tests on many spinning threads take minutes."""

import os

from vivit_bench.hardware import OPENMP_WAITING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(OPENMP_WAITING)
