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
sort or an eigensolver). A copy from or to the CPU, and what asks for a number, is a
synchronisation.
"""

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import vivit_bench

PACKAGE = str(Path(vivit_bench.__file__).parent)
CUDA, META = torch.device("cuda", 0), torch.device("meta")
FREE_BYTES, TOTAL_BYTES = 75 * 2**30, 79 * 2**30
"""Memory of the pretended card: an H100's."""

_WITHOUT_LAUNCH = {
    "aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty",
    "aten::new_empty_strided", "aten::_unsafe_view",
    "aten::_local_scalar_dense",
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
_INDEXING = ("aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_COPIES = {"aten::_to_copy", "aten::copy_"}
_SIZES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::index.Tensor"}
"""Operations of whose results only the numbers tell how large they are."""


class MixedDevicesError(AssertionError):
    """An operation that raises on CUDA: its tensors are on different devices."""


class TooManyLaunchesError(BaseException):
    """A run was given up; not for the package, which explains what a model raises."""


@dataclass
class Report:
    """What a run did on the device, by source line (``curvature/products.py:12 name``)."""

    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(line, operation) -> how often."""
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(line, reason) -> synchronisations."""
    most: int | None = None
    """Launches after which a run is given up."""
    _count: int = 0

    def check(self) -> None:
        """Raise ``TooManyLaunchesError`` where there were."""
        self._count += 1
        if self.most is not None and self._count > self.most:
            raise TooManyLaunchesError(f"more than {self.most:,} launches so far:\n{self.table()}")

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
            for tensors in cast(list[dict[str, Any]], [each._parameters, each._buffers]):
                for name, tensor in tensors.items():
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


@dataclass(frozen=True)
class _Kind:
    """What the probe must know of an operation."""

    name: str
    view: bool
    """It returns other sights of its arguments, or changes nothing but their shape."""
    written: tuple[int | str, ...]
    """Arguments that it writes and returns, by position or keyword."""
    elementwise: bool
    """Single numbers of the CPU may be among its arguments."""

    @property
    def launches(self) -> bool:
        """Whether a kernel runs."""
        return not self.view and self.name not in _WITHOUT_LAUNCH


@cache
def _kind(func: Any) -> _Kind:
    schema = func._schema
    aliases = [r.alias_info for r in schema.returns]
    view = any(a is not None and not a.is_write for a in aliases)
    written = tuple(
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    elementwise = torch.Tag.pointwise in func.tags or func.name() == "aten::fill_.Tensor"
    view = view or torch.Tag.inplace_view in func.tags
    return _Kind(func.name(), view, written if all(aliases) else (), elementwise)


class _Operations(TorchDispatchMode):
    """Records every operation, and computes its numbers aside."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._buffers: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        """Storage of a tensor on the device -> its bytes on the CPU."""
        self._computes, self._until_purge = True, 0

    def put(self, tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            if self._computes:
                storage = made.untyped_storage()
                self._purge()
                buffer = torch.empty(storage.nbytes(), dtype=torch.uint8)
                self._buffers[storage._cdata] = (StorageWeakRef(storage), buffer)
                self.values_of(made).copy_(tensor.detach())
        return made

    def _purge(self) -> None:
        """Now and then, forget the numbers of tensors that are no more."""
        self._until_purge -= 1
        if self._until_purge < 0:
            self._buffers = {k: v for k, v in self._buffers.items() if not v[0].expired()}
            self._until_purge = 200

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

    def _real(self, x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(map(self._real, x))
        return self.values_of(x) if isinstance(x, Tensor) and x.is_meta else x

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        if kwargs.get("device") != META and not any(t.is_meta for t in tensors):
            return func(*args, **kwargs)
        kind = _kind(func)
        if kind.name in _COPIES:
            source = args[kind.name == "aten::copy_"]
            target = args[0] if kind.name == "aten::copy_" else kwargs.get("device", args[0])
            target = getattr(target, "device", target)
            if target.type != source.device.type:
                return self._move(func, kind, source, target, args, kwargs)
        else:
            self._check_devices(kind, tensors, args)
        self._record(kind, args)
        if kind.name == "aten::_local_scalar_dense":
            return self._number(args[0])
        if kind.name == "aten::equal":
            return self._computes and torch.equal(*map(self.values_of, args[:2]))
        if kind.view:
            return func(*args, **kwargs)
        return self._run(func, kind, args, kwargs)

    def _run(self, func: Any, kind: _Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made: Any = None
        if self._computes or kind.name in _SIZES or kind.name == "aten::cudnn_batch_norm":
            kernel = _batch_norm if kind.name == "aten::cudnn_batch_norm" else func
            here = {key: self._real(x) for key, x in kwargs.items()}
            if "device" in here:
                here["device"] = torch.device("cpu")
            found = kernel(*self._real(args), **here)
            if not kind.written:
                if isinstance(found, Tensor):
                    return self.put(found)
                return type(found)(self.put(x) if isinstance(x, Tensor) else x for x in found)
        if kind.written:
            made = [args[w] if isinstance(w, int) else kwargs[w] for w in kind.written]
            return made[0] if len(made) == 1 else tuple(made)
        made = func(*args, **kwargs)
        if kind.name.startswith("aten::all"):
            made.counts_as_true = True
        return made

    def _number(self, tensor: Tensor) -> Any:
        """Its value; without numbers 0, and true for ``all`` (are finite, say)."""
        if self._computes:
            return self.values_of(tensor).item()
        if tensor.dtype == torch.bool:
            return hasattr(tensor, "counts_as_true")
        return 0.0 if tensor.is_floating_point() else 0

    def _move(
        self,
        func: Any,
        kind: _Kind,
        source: Tensor,
        target: torch.device,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """From one device to the other."""
        there = target.type == "meta"
        self._report.waits[_source_line(), "copied to the " + ("device" if there else "CPU")] += 1
        if kind.name == "aten::copy_":
            if self._computes or not there:
                self._real(args[0]).copy_(self._real(source))
            return args[0]
        rest = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        found = func(self._real(source), **rest)
        return self.put(found) if there else found

    def _record(self, kind: _Kind, args: tuple[Any, ...]) -> None:
        reason = _WAITS.get(kind.name, "")
        if kind.name in _INDEXING:
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                reason = "the result's size is asked for"
            elif not all(i.is_meta for i in indices):
                reason = "copied to the device"
        if not reason and not kind.launches:
            return
        line = _source_line()
        if reason:
            self._report.waits[line, reason] += 1
        if kind.launches:
            self._report.launches[line, kind.name] += 1
            self._report.check()

    def _check_devices(self, kind: _Kind, tensors: Sequence[Tensor], args: tuple[Any, ...]) -> None:
        """What CUDA refuses; numbers on the CPU may meet tensors elementwise, and index them."""
        if kind.name in _INDEXING:
            tensors = [args[0], *_tensors(args[2:3])]
        strangers = [t for t in tensors if not t.is_meta]
        mixes = kind.elementwise or kind.name in _INDEXING[1:]
        if strangers and not (mixes and all(t.ndim == 0 for t in strangers)):
            shapes = [f"{list(t.shape)} on {'cuda' if t.is_meta else 'cpu'}" for t in tensors]
            raise MixedDevicesError(f"{_source_line()}: {kind.name} of {', '.join(shapes)}")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _batch_norm(*args: Any) -> tuple[Tensor, ...]:
    """cuDNN's in evaluation mode, on the CPU; it returns nothing to keep."""
    nothing = args[0].new_empty(0)
    return torch.native_batch_norm(*args)[0], nothing, nothing.clone(), nothing.byte()


class _Names(TorchFunctionMode):
    """What is asked for on ``cuda`` is made on ``meta``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if len(args) == 1 and not kwargs and func is not Tensor.cuda:
            return func(*args)  # attributes, mostly
        if func is Tensor.cuda:
            return args[0].to(META)
        if func is F.batch_norm and args[0].is_meta:
            return _batch_norm_on_cuda(*args, **kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            args = (args[0], _without_lists(args[1]), *args[2:])
        asked = any(map(_is_cuda, args)) or _is_cuda(kwargs.get("device"))
        if asked and func is not torch.device:
            args = tuple(META if _is_cuda(x) else x for x in args)
            kwargs = {k: META if _is_cuda(x) else x for k, x in kwargs.items()}
            if func in (torch.tensor, torch.as_tensor):  # else made on meta, without numbers
                return func(*args, **{k: x for k, x in kwargs.items() if k != "device"}).to(META)
        return func(*args, **kwargs)


def _batch_norm_on_cuda(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """In evaluation mode too, PyTorch takes cuDNN's, whose node in the graph has another name."""
    if weight is None or bias is None or running_mean is None or training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    statistics = (running_mean, running_var, training, momentum, eps)
    return torch.cudnn_batch_norm(x.contiguous(), weight, bias, *statistics)[0]


def _without_lists(index: Any) -> Any:
    """An index whose lists are CPU tensors: PyTorch would make them on meta, without numbers."""
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _is_cuda(x: Any) -> bool:
    return isinstance(x, torch.device | str) and str(x).startswith("cuda")


def _in_package(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


_BASE: Any = torch._C.TensorBase


def _device_of(tensor: Tensor) -> torch.device:
    found: torch.device = _BASE.device.__get__(tensor)
    return CUDA if found.type == "meta" and _in_package(sys._getframe(1)) else found


def _is_meta(tensor: Tensor) -> bool:
    return _BASE.is_meta.__get__(tensor) and not _in_package(sys._getframe(1))


def _tensor_is_cuda(tensor: Tensor) -> bool:
    return _BASE.is_meta.__get__(tensor) and _in_package(sys._getframe(1))


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


def probe_workload(
    problem: str, batch_size: int, *, most: int | None = None, **options: Any
) -> Report:
    """Launches and synchronisations of ``eigenvalues`` for one of the suite's problems.

    Args:
        problem: Its name.
        batch_size: N.
        most: Launches after which to give up.
        options: Of ``eigenvalues``.
    """
    from vivit_bench.curvature import eigenvalues
    from vivit_bench.problems.sources import DataSource
    from vivit_bench.problems.workload import WorkloadSpec, load_workload

    spec = WorkloadSpec(problem, batch_size=batch_size, data=DataSource.SYNTHETIC)
    model, loss, inputs, targets = load_workload(spec).request
    probe = Probe()
    probe.report.most = most
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
