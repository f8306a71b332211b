"""A pretended GPU: every operation of a run is seen, and those of the CUDA path run without one.

Tensors "on the device" are tensors of PyTorch's ``meta`` device, which knows shapes and no
numbers. The package is told that they are on ``cuda:0``: its frames see this device, and what
they make there is made on ``meta``. Below autograd every operation is recorded with the line of
the package that caused it, and operations that would raise on CUDA because their tensors are on
different devices raise here. Numbers are kept aside, in one CPU buffer for each storage, and every
operation is computed on them as well, so that decisions and results are the real ones; for large
mini-batches they are given up at some point, after which every number counts as zero.

    python tests/meta_probe.py cifar10_3c3d 1024

prints launches and synchronisations for each source line. A launch is an operation that writes a
tensor on the device: views and uninitialised memory are none, and an operation that PyTorch
cannot take apart is one, whatever kernels it consists of (a product over many pairs, but also a
sort or an eigensolver). A copy from or to the CPU, and what asks for a number, is one that waits.
"""

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import vivit_bench

PACKAGE = str(Path(vivit_bench.__file__).parent)
CUDA, META = torch.device("cuda", 0), torch.device("meta")
FREE_BYTES, TOTAL_BYTES = 75 * 2**30, 79 * 2**30
"""Memory of the pretended card: an H100's."""

_WITHOUT_LAUNCH = {
    "aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty",
    "aten::new_empty_strided", "aten::_unsafe_view", "aten::lift_fresh", "aten::detach",
    "aten::detach_", "aten::resize_", "aten::set_.source_Storage",
}  # fmt: skip
_WAITS = {
    "aten::_local_scalar_dense": "a number is asked for",
    "aten::equal": "tensors are compared",
    "aten::nonzero": "the result's size is asked for",
    "aten::masked_select": "the result's size is asked for",
    "aten::_unique2": "the result's size is asked for",
    "aten::unique_dim": "the result's size is asked for",
    "aten::bincount": "the result's size is asked for",
    "aten::repeat_interleave.Tensor": "the result's size is asked for",
    "aten::_linalg_eigh": "the solver's success is asked for",
}
_INDEXING = {"aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES = {"aten::_to_copy", "aten::copy_"}
_FACTORY_SIZES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::index.Tensor"}


class MixedDevicesError(AssertionError):
    """An operation that raises on CUDA: its tensors are on different devices."""


@dataclass
class Report:
    """What a run did on the device, by source line (``curvature/products.py:12 name``)."""

    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(line, operation) -> how often."""
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(line, reason) -> synchronisations."""

    @property
    def num_launches(self) -> int:
        """All of them."""
        return self.launches.total()

    @property
    def num_waits(self) -> int:
        """All of them."""
        return self.waits.total()

    def table(self, most: int = 40) -> str:
        """For people: the lines that launch or wait most."""
        lines: Counter[str] = Counter()
        for (line, _), count in (self.launches + self.waits).items():
            lines[line] += count
        rows = [f"{'launches':>9} {'waits':>6}  source line: operations"]
        for line, _ in lines.most_common(most):
            ops = Counter({op: n for (at, op), n in self.launches.items() if at == line})
            waits = Counter({why: n for (at, why), n in self.waits.items() if at == line})
            named = [f"{op.removeprefix('aten::')} {n}" for op, n in ops.most_common(4)]
            named += [f"[{why} {n}]" for why, n in waits.items()]
            rows.append(f"{ops.total():9,} {waits.total():6,}  {line}: {', '.join(named)}")
        if len(lines) > most:
            rows.append(f"{'':16}  and {len(lines) - most} lines more")
        rows.append(f"{self.num_launches:9,} {self.num_waits:6,}  in total")
        return "\n".join(rows)


class Probe:
    """The pretended GPU; use as a context manager.

    Attributes:
        report: What was recorded so far.
    """

    def __init__(self) -> None:
        self.report = Report()
        self._mode = _Operations(self.report)
        self._stack = ExitStack()

    def __enter__(self) -> "Probe":
        with ExitStack() as stack:
            for name, fake in _FAKES.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, fake))
            for name, fact in _FACTS.items():
                stack.enter_context(mock.patch.object(Tensor, name, fact, create=True))
            stack.enter_context(_Names())
            stack.enter_context(self._mode)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device; not counted."""
        return self._mode.put(tensor)

    def put_module(self, module: nn.Module) -> nn.Module:
        """A copy of a module on the device; weights that it shares stay shared."""
        module = copy.deepcopy(module)
        moved: dict[Tensor, Tensor] = {}
        for each in module.modules():
            for tensors in (each._parameters, each._buffers):
                for name, tensor in cast(dict[str, Tensor | None], tensors).items():
                    if tensor is None:
                        continue
                    if tensor not in moved:
                        there = self.put(tensor.detach())
                        if isinstance(tensor, nn.Parameter):
                            there = nn.Parameter(there, tensor.requires_grad)
                        moved[tensor] = there
                    tensors[name] = moved[tensor]
        return module

    def read(self, tensor: Tensor) -> Tensor:
        """A tensor of the device on the CPU; not counted."""
        return self._mode.values_of(tensor).clone() if tensor.is_meta else tensor

    def forget_values(self) -> None:
        """Compute no numbers from here on: all count as zero."""
        self._mode.forget_values()


class _Operations(TorchDispatchMode):
    """Records every operation, and computes its numbers aside."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._buffers: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        """Storage of a tensor on the device -> its bytes on the CPU."""
        self._computes, self._until_purge = True, 0
        self._true: set[int] = set()
        """Storages of booleans that count as true where there are no numbers."""

    def put(self, tensor: Tensor) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            if self._computes:
                self._bind(made, tensor.detach())
        return made

    def forget_values(self) -> None:
        self._computes = False
        self._buffers.clear()

    def values_of(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor on the device: a CPU tensor over its buffer, or zeros."""
        if not self._computes:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        _, buffer = self._buffers[tensor.untyped_storage()._cdata]
        return torch.empty(0, dtype=tensor.dtype).set_(
            buffer.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )

    def _bind(self, made: Tensor, values: Tensor) -> None:
        """Give a new tensor its numbers; one whose storage has them is a view or was written."""
        storage = made.untyped_storage()
        if storage._cdata in self._buffers:
            return
        assert (made.shape, made.dtype) == (values.shape, values.dtype), "meta and CPU differ"
        self._until_purge -= 1
        if self._until_purge < 0:
            self._buffers = {k: v for k, v in self._buffers.items() if not v[0].expired()}
            self._until_purge = 200
        buffer = torch.empty(storage.nbytes(), dtype=torch.uint8)
        self._buffers[storage._cdata] = (StorageWeakRef(storage), buffer)
        self.values_of(made).copy_(values)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        here = any(t.is_meta for t in tensors)
        made_there = "device" in kwargs and kwargs["device"] == META
        if not here and not made_there:
            return func(*args, **kwargs)
        if name in _COPIES:
            return self._copy(func, name, args, kwargs)
        self._check_devices(func, name, tensors)
        self._record(func, name, args)
        if name == "aten::_local_scalar_dense":
            return self._number(args[0])
        if name == "aten::equal":
            return self._computes and torch.equal(*map(self.values_of, args[:2]))
        return self._run(func, name, args, kwargs)

    def _run(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_view(func):
            return func(*args, **kwargs)
        found: Any = None
        if self._computes or name in _FACTORY_SIZES:
            real = {k: v for k, v in kwargs.items() if k != "device"}
            real |= {"device": torch.device("cpu")} if "device" in kwargs else {}
            found = func(*tree_map(self._real, args), **tree_map(self._real, real))
        if name in _FACTORY_SIZES:  # only the numbers tell how large it is
            return tree_map(lambda t: self.put(t) if isinstance(t, Tensor) else t, found)
        made = func(*args, **kwargs)
        if self._computes:
            pairs = zip(tree_flatten(made)[0], tree_flatten(found)[0], strict=True)
            for there, values in pairs:
                if isinstance(there, Tensor) and there.is_meta:
                    self._bind(there, values)
        elif name.startswith("aten::all"):
            self._true.add(made.untyped_storage()._cdata)
        return made

    def _real(self, x: Any) -> Any:
        return self.values_of(x) if isinstance(x, Tensor) and x.is_meta else x

    def _number(self, tensor: Tensor) -> Any:
        """Its value; without numbers 0, and true for ``all`` (are finite, say)."""
        if self._computes:
            return self.values_of(tensor).item()
        if tensor.dtype == torch.bool:
            return tensor.untyped_storage()._cdata in self._true
        return 0.0 if tensor.is_floating_point() else 0

    def _copy(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Copies, which alone may go from one device to another."""
        if name == "aten::copy_":
            target, source = args[0].device, args[1]
        else:
            target, source = torch.device(kwargs.get("device") or args[0].device), args[0]
        if target.type == source.device.type == "meta":
            self._record(func, name, args)
            return self._run(func, name, args, kwargs)
        way = "copied to the CPU" if target.type == "cpu" else "copied to the device"
        self._report.waits[_source_line(), way] += 1
        values = self._real(source)
        if name == "aten::copy_":
            if self._computes or target.type == "cpu":
                self._real(args[0]).copy_(values)
            return args[0]
        rest = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        found = func(values, **rest)
        return found if target.type == "cpu" else self.put(found)

    def _record(self, func: Any, name: str, args: tuple[Any, ...]) -> None:
        reason = _WAITS.get(name, "")
        if name in _INDEXING:
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                reason = "the result's size is asked for"
            elif any(not i.is_meta for i in indices):
                reason = "copied to the device"
        if reason:
            self._report.waits[_source_line(), reason] += 1
        launches = name not in _WITHOUT_LAUNCH and name != "aten::_local_scalar_dense"
        if launches and not _is_view(func):
            self._report.launches[_source_line(), name] += 1

    def _check_devices(self, func: Any, name: str, tensors: Sequence[Tensor]) -> None:
        """What CUDA refuses; numbers on the CPU may meet tensors elementwise, and index them."""
        strangers = [t for t in tensors if not t.is_meta]
        if not strangers or name in _INDEXING:
            return
        mixes = torch.Tag.pointwise in func.tags or name in ("aten::fill_.Tensor",)
        if not mixes or any(t.ndim for t in strangers):
            shapes = [f"{list(t.shape)} on {'cuda' if t.is_meta else 'cpu'}" for t in tensors]
            raise MixedDevicesError(f"{_source_line()}: {name} of {', '.join(shapes)}")


def _is_view(func: Any) -> bool:
    """Whether an operation returns other sights of its arguments."""
    aliases = [r.alias_info for r in func._schema.returns]
    return any(a is not None and not a.is_write for a in aliases)


class _Names(TorchFunctionMode):
    """What is asked for on ``cuda`` is made on ``meta``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.cuda:
            return args[0].to(META)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            args = (args[0], _without_lists(args[1]), *args[2:])
        asked = any(map(_is_cuda, args)) or _is_cuda(kwargs.get("device"))
        if asked and func is not torch.device:
            args = tuple(META if _is_cuda(x) else x for x in args)
            kwargs = {k: META if _is_cuda(x) else x for k, x in kwargs.items()}
            if func in (torch.tensor, torch.as_tensor):  # else made on meta, without numbers
                return func(*args, **{k: x for k, x in kwargs.items() if k != "device"}).to(META)
        return func(*args, **kwargs)


def _without_lists(index: Any) -> Any:
    """An index whose lists are CPU tensors: PyTorch would make them on meta, without numbers."""
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _is_cuda(x: Any) -> bool:
    return isinstance(x, torch.device | str) and str(x).startswith("cuda")


def _in_package(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


def _device_of(tensor: Tensor) -> torch.device:
    found = torch._C.TensorBase.device.__get__(tensor)  # type: ignore[attr-defined]
    return CUDA if found.type == "meta" and _in_package(sys._getframe(1)) else found


def _is_meta(tensor: Tensor) -> bool:
    found = torch._C.TensorBase.is_meta.__get__(tensor)  # type: ignore[attr-defined]
    return found and not _in_package(sys._getframe(1))


def _tensor_is_cuda(tensor: Tensor) -> bool:
    found = torch._C.TensorBase.is_meta.__get__(tensor)  # type: ignore[attr-defined]
    return found and _in_package(sys._getframe(1))


_FACTS = {
    "device": property(_device_of),
    "is_meta": property(_is_meta),
    "is_cuda": property(_tensor_is_cuda),
}
_FAKES: dict[str, Callable[..., Any]] = {
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
    "synchronize": lambda device=None: None,
    "mem_get_info": lambda device=None: (FREE_BYTES, TOTAL_BYTES),
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 0,
    "get_device_properties": lambda device=None: SimpleNamespace(total_memory=TOTAL_BYTES),
}


def _source_line() -> str:
    """The innermost line of the package on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _in_package(frame):
        frame = frame.f_back
    if frame is None:
        return "outside of the package"
    file = frame.f_code.co_filename[len(PACKAGE) + 1 :]
    return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"


@contextmanager
def without_values_in_the_sweep(probe: Probe) -> Iterator[None]:
    """Numbers decide how a network's passes are cut; from the sweep on they are given up."""
    from vivit_bench.curvature import session

    sweep = session.sweep_curvature

    def sweep_without_values(*args: Any, **kwargs: Any) -> Any:
        probe.forget_values()
        return sweep(*args, **kwargs)

    with mock.patch.object(session, "sweep_curvature", sweep_without_values):
        yield


def probe_workload(problem: str, batch_size: int, **options: Any) -> Report:
    """Launches and synchronisations of ``eigenvalues`` for one of the suite's problems.

    Args:
        problem: Its name.
        batch_size: N.
        options: Of ``eigenvalues``.
    """
    from vivit_bench.curvature import eigenvalues
    from vivit_bench.problems.sources import DataSource
    from vivit_bench.problems.workload import WorkloadSpec, load_workload

    spec = WorkloadSpec(problem, batch_size=batch_size, data=DataSource.SYNTHETIC)
    model, loss, inputs, targets = load_workload(spec).request
    probe = Probe()
    with probe, without_values_in_the_sweep(probe):
        request = (probe.put_module(model), loss, probe.put(inputs), probe.put(targets))
        eigenvalues(*request, **options)
    return probe.report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("problem", nargs="?", default="cifar10_3c3d")
    parser.add_argument("batch_size", nargs="?", type=int, default=1024)
    parser.add_argument("--curvature", default="exact", choices=("exact", "mc"))
    parser.add_argument("--rows", type=int, default=40, help="lines of the table")
    given = parser.parse_args()
    found = probe_workload(given.problem, given.batch_size, curvature=given.curvature)
    print(found.table(given.rows))
