"""float32 stays float32, however TF32 was asked for before, and the request stands afterwards.

PyTorch's settings cannot all be put back, so that each way is tried in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from curvature_cases import CASES
from oracle import dense, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from vivit_bench.curvature import eigenvalues
from vivit_bench.precision import ieee_float32

B = "torch.backends"
WAYS = [
    "",
    f"{B}.cudnn.allow_tf32 = True",
    f"{B}.cudnn.allow_tf32 = False",
    f"{B}.cuda.matmul.allow_tf32 = True",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    f"{B}.fp32_precision = 'tf32'",
    f"{B}.fp32_precision = 'ieee'",
    f"{B}.cudnn.fp32_precision = 'tf32'",
    f"{B}.cudnn.conv.fp32_precision = 'tf32'; {B}.cudnn.rnn.fp32_precision = 'ieee'",
    f"{B}.cuda.matmul.fp32_precision = 'tf32'",
    f"{B}.mkldnn.fp32_precision = 'bf16'",
    f"{B}.mkldnn.matmul.fp32_precision = 'tf32'",
    f"{B}.cuda.matmul.allow_tf32 = True; {B}.cuda.matmul.fp32_precision = 'ieee'",
    f"{B}.cuda.matmul.allow_tf32 = True; {B}.fp32_precision = 'tf32'",
    f"torch.set_float32_matmul_precision('high'); {B}.cudnn.conv.fp32_precision = 'ieee'",
    f"{B}.fp32_precision = 'tf32'; {B}.cudnn.allow_tf32 = False",
]

PROGRAM = """
import json, os, sys
import torch
from vivit_bench.precision import ieee_float32

B = torch.backends
LEAVES = {
    "cuda": [B.cuda.matmul, B.cudnn.conv, B.cudnn.rnn],
    "cpu": [B.mkldnn.matmul, B.mkldnn.conv, B.mkldnn.rnn],
}
READ = [
    lambda: B.fp32_precision, lambda: B.cudnn.fp32_precision, lambda: B.mkldnn.fp32_precision,
    lambda: B.cuda.matmul.allow_tf32, lambda: B.cudnn.allow_tf32,
    torch.get_float32_matmul_precision,
    *[lambda leaf=leaf: leaf.fp32_precision for leaves in LEAVES.values() for leaf in leaves],
]

def state():
    found = []
    for read in READ:
        try:
            found.append(str(read()))
        except RuntimeError:
            found.append("mixed")
    return found

for device in LEAVES:
    for way in json.loads(sys.argv[1]):
        if os.fork():
            os.wait()
            continue
        exec(way)
        before = state()
        with ieee_float32([device]):
            inside = [leaf.fp32_precision for leaf in LEAVES[device]]
            mixed = state()[3:6].count("mixed")
        print(json.dumps([device, way, inside, mixed, before, state()]), flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="older settings alone")
def test_every_way_of_asking_for_less_is_undone_and_redone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(WAYS)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(WAYS), done.stderr
    reduced = 0
    for device, way, inside, mixed, before, after in lines:
        assert set(inside) <= {"ieee", "none"}, (device, way)
        assert after == before, (device, way)
        assert mixed <= before[3:6].count("mixed"), (device, way)
        leaves = before[6:9] if device == "cuda" else before[9:]
        reduced += bool(set(leaves) & {"tf32", "bf16"})
    assert reduced > 12  # there was something to undo


class _Rounding(TorchDispatchMode):
    """Convolutions as tensor cores compute them: inputs of 10 bits where the setting says so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func) and torch.backends.mkldnn.conv.fp32_precision == "tf32":
            args = tuple(_rounded(a) for a in args)
        return func(*args, **(kwargs or {}))


def _rounded(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def _unguarded(devices: Any) -> Iterator[None]:
    yield


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="no such setting")
def test_eigenvalues_are_those_of_float32_where_convolutions_are_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = next(case for case in CASES if case.name == "conv1d")
    expected = torch.linalg.eigvalsh(dense(*case.build(torch.float64)).ggn()).flip(0)

    def error() -> float:
        with _Rounding():
            found = eigenvalues(*case.build(torch.float32), certify=False).eigenvalues
        return relative_error(found, expected[: len(found)])

    conv: Any = torch.backends.mkldnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "tf32"
    try:
        assert error() < 1e-6
        assert conv.fp32_precision == "tf32"
        monkeypatch.setattr("vivit_bench.curvature.minibatch.ieee_float32", _unguarded)
        assert error() > 1e-5  # the emulation rounds
    finally:
        conv.fp32_precision = before


def test_older_settings_are_undone_and_redone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flag:
        allow_tf32 = True

    class Backends:
        class cuda:  # noqa: N801
            matmul = Flag()

        class mkldnn:  # noqa: N801
            pass

        cudnn = Flag()

    monkeypatch.setattr(torch, "backends", Backends)
    with ieee_float32(["cuda", "cpu"]):
        assert not Backends.cuda.matmul.allow_tf32
        assert not Backends.cudnn.allow_tf32
    assert Backends.cuda.matmul.allow_tf32
    assert Backends.cudnn.allow_tf32
