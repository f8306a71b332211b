"""Set before torch is imported: small tests on many spinning threads take minutes."""

import os
from collections import Counter

import pytest

from vivit_bench.arguments import RESULTS_VARIABLE
from vivit_bench.hardware import OPENMP_WAITING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(OPENMP_WAITING)
os.environ.pop(RESULTS_VARIABLE, None)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Thin large grids out; skip what needs a GPU, or a Slurm, where there is none."""
    seen: Counter[str] = Counter()
    for item in items:
        if mark := item.get_closest_marker("one_in"):
            grid = item.nodeid.partition("[")[0]
            if seen[grid] % mark.args[0]:
                item.add_marker("thorough")
            seen[grid] += 1
    if of_slurm := [item for item in items if item.get_closest_marker("slurm")]:
        from slurm_node import missing

        if reason := missing():
            for item in of_slurm:
                item.add_marker(pytest.mark.skip(reason=reason))
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
