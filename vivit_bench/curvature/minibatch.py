"""A checked request: model, loss, mini-batch, approximation. Nothing in it changes."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vivit_bench.curvature.batched import batched_backward
from vivit_bench.curvature.kept import Kept
from vivit_bench.curvature.loss_checks import check_loss, check_targets
from vivit_bench.curvature.loss_factor import LossFactor, loss_factor
from vivit_bench.curvature.options import Approximation
from vivit_bench.curvature.results import BatchInfo
from vivit_bench.curvature.tuning import default_working_bytes
from vivit_bench.errors import UsageError, VivitBenchError, describe, is_out_of_memory
from vivit_bench.precision import ieee_float32, without_cudnn
from vivit_bench.trees import Tree, leaves, map_tree, num_samples

Patterns = str | Sequence[str]
"""Names of parameters, with ``*`` and ``?`` as in a shell."""

_DROPOUTS = nn.modules.dropout._DropoutNd
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@contextmanager
def blamed_on_model(what: str) -> Iterator[None]:
    """Turn what a model raises inside the block into one line.

    Running out of memory is not the model's fault and passes.

    Args:
        what: Failed, for the message.

    Raises:
        UsageError: In one line.
    """
    try:
        yield
    except VivitBenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(f"{what} failed: {describe(error)}") from error


@dataclass(frozen=True)
class MiniBatch:
    """One request."""

    model: nn.Module
    loss: nn.Module
    inputs: Tree
    """Tensors [N, ...]."""
    targets: Tensor
    """[N, ...]; labels as int64."""
    approximation: Approximation
    factor: LossFactor
    """Of the loss Hessian on these targets."""
    names: dict[nn.Parameter, str]
    """The parameters that count, in the model's order."""
    output_shape: torch.Size
    """Of one sample's output."""
    working_bytes: int
    """Memory target of one micro-batch."""
    has_batch_norm: bool
    """Whether ``mend_batch_norm`` has something to do."""
    kept: Kept | None = None
    """The columns of V that count; None: all."""
    is_plain: bool = False
    """Nothing is made faster: the model runs just as it is."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order of ``model.parameters()``."""
        return list(self.names)

    @property
    def num_params(self) -> int:
        """D."""
        return sum(p.numel() for p in self.names)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.parameters[0].device

    @property
    def batch_size(self) -> int:
        """N."""
        return len(self.targets)

    @property
    def num_samples(self) -> int:
        """Samples that carry the curvature."""
        return self.approximation.num_samples(self.batch_size)

    @property
    def rows(self) -> int:
        """M, columns of V; those that are kept."""
        if self.kept is not None:
            return len(self.kept.index)
        return self.num_samples * self.factor.num_columns

    @property
    def gradients_in_range(self) -> bool:
        """Whether per-sample gradients are combinations of the samples' columns of V.

        They are for exact curvature of the whole mini-batch, of which no column is dropped.
        """
        whole = self.num_samples == self.batch_size and self.kept is None
        return whole and self.factor.noise() is None

    def info(self, loss: float) -> BatchInfo:
        """The description that goes with every result."""
        return BatchInfo(
            num_params=self.num_params,
            batch_size=self.batch_size,
            num_samples=self.num_samples,
            num_outputs=self.output_shape.numel(),
            num_columns=self.num_samples * self.factor.num_columns,
            loss=loss,
            solver_dtype="float64",
        )

    def forward(
        self, samples: slice | list[int], *, graph: bool = True, check: bool = True
    ) -> Tensor:
        """Model outputs of some samples, with a graph whose backward passes are made faster.

        They are to be run inside `hastened` as well.

        Args:
            samples: Which ones.
            graph: Whether there is one.
            check: Whether they are checked at once, for which a GPU is waited for.
        """
        with self.hastened():
            outputs = self._forward(samples, graph)
        if check:
            self.check_outputs(outputs, samples)
        return outputs

    def hastened(self) -> AbstractContextManager[None]:
        """What `forward` does to the model; a checkpoint runs parts of it in backward passes."""
        return nullcontext() if self.is_plain else batched_backward(self.model)

    def plain_forward(
        self, samples: slice | list[int], *, graph: bool = True, check: bool = True
    ) -> Tensor:
        """Model outputs of some samples, by the model just as it is; see `forward`.

        Raises:
            UsageError: They are not finite.
        """
        outputs = self._forward(samples, graph)
        if check:
            self.check_outputs(outputs, samples)
        return outputs

    def _forward(self, samples: slice | list[int], graph: bool) -> Tensor:
        with torch.set_grad_enabled(graph), blamed_on_model("the model's forward pass"):
            outputs: Tensor = self.model(_copied(self.inputs, samples))
        if graph and self.has_batch_norm:
            mend_batch_norm(outputs)
        if outputs.ndim and outputs.shape[1:] != self.output_shape:
            raise UsageError(
                f"the model's output has shape {list(outputs.shape)} for samples {_named(samples)} "
                f"and {[1, *self.output_shape]} for the first one alone; it must not depend on "
                "which samples run together (pad to a fixed length)"
            )
        return outputs

    def check_outputs(self, outputs: Tensor, samples: slice | list[int]) -> None:
        """Refuse outputs that are not finite.

        Args:
            outputs: [n, ...].
            samples: Which ones they are of.

        Raises:
            UsageError: It names the first such sample.
        """
        if outputs.isfinite().all():
            return
        bad = int((~outputs.isfinite()).flatten(1).any(1).nonzero()[0])
        number = samples.start + bad if isinstance(samples, slice) else samples[bad]
        raise UsageError(
            f"the model's output of sample {number} is not finite; check the parameters and "
            "inputs for NaN or overflow"
        )


class Together:
    """What micro-batches give for each of their samples, in one tensor.

    A small one each would stay on the heap between what is freed around it, and scatter it.

    Args:
        count: Samples of all micro-batches.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._all: Tensor | None = None

    def put(self, samples: slice, found: Tensor) -> None:
        """Copy what is found; the first time tells shape, dtype and device.

        Args:
            samples: Which ones.
            found: [n, ...] of them.
        """
        if self._all is None:
            self._all = found.new_empty(self._count, *found.shape[1:])
        self._all[samples] = found.detach()

    @property
    def tensor(self) -> Tensor:
        """[count, ...], without a graph; of all samples there is something."""
        assert self._all is not None
        return self._all


def check_request(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tree,
    targets: Tensor,
    approximation: Approximation,
    *,
    params: Patterns | None = None,
    working_bytes: int | None = None,
) -> tuple[MiniBatch, Tensor]:
    """Check a request, with one forward pass of one sample.

    Args:
        model: In evaluation mode.
        loss: See ``check_loss``.
        inputs: Tensors [N, ...].
        targets: [N, ...].
        approximation: Which GGN.
        params: Names of the parameters that count; None: all that require gradients.
        working_bytes: Memory target of one micro-batch; None: the device's.

    Returns:
        The request, and the first sample's output with its graph.

    Raises:
        UsageError: With the value, the reason and the remedy.
    """
    check_loss(loss)
    names = {p: name for name, p in named_parameters(model, params)}
    _check_model(model, names)
    first = next(iter(names))
    inputs, targets = _check_data(inputs, targets, first)
    if working_bytes is None:
        working_bytes = default_working_bytes(first.device)
    elif isinstance(working_bytes, bool) or not isinstance(working_bytes, int) or working_bytes < 1:
        raise UsageError(f"working_bytes is {working_bytes!r}; it must be a whole number above 0")
    if first.device.type == "cpu":
        _let_allocator_keep_memory()
    failing = "the model's forward pass on one sample"
    with torch.enable_grad(), batched_backward(model), blamed_on_model(failing):
        outputs = model(_copied(inputs, slice(0, 1)))
    _check_outputs(outputs, first)
    shape = outputs.shape[1:]
    targets = check_targets(loss, tuple(shape), targets)
    factor = loss_factor(loss, shape, targets, approximation)
    has_batch_norm = mend_batch_norm(outputs)
    batch = MiniBatch(
        model,
        loss,
        inputs,
        targets,
        approximation,
        factor,
        names,
        shape,
        working_bytes,
        has_batch_norm,
    )
    return batch, outputs


def check_patterns(name: str, patterns: object) -> list[str]:
    """One or several patterns of parameter names as a list.

    Raises:
        UsageError: They are no text, or there is none.
    """
    if isinstance(patterns, str):
        return [patterns]
    if isinstance(patterns, list | tuple) and patterns:
        found = list(patterns)
        if all(isinstance(pattern, str) for pattern in found):
            return found
    raise UsageError(
        f"{name} is {patterns!r}; give a pattern of parameter names such as 'layer4.*', or a list "
        "of them"
    )


def named_parameters(
    model: nn.Module, params: Patterns | None = None
) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters whose names match, in the model's order.

    Args:
        model: Any.
        params: Patterns of names; None: all.

    Raises:
        UsageError: There is none, or a pattern matches none.
    """
    trainable = {p: name for name, p in model.named_parameters() if p.requires_grad}
    every = [x for x in model.named_parameters(remove_duplicate=False) if x[1].requires_grad]
    if not trainable:
        raise UsageError("the model has no parameter with requires_grad=True")
    if params is None:
        return [(name, p) for p, name in trainable.items()]
    chosen: set[nn.Parameter] = set()
    for pattern in check_patterns("params", params):
        found = {p for name, p in every if fnmatchcase(name, pattern)}  # tied ones by any name
        if not found:
            known = ", ".join(list(trainable.values())[:4])
            raise UsageError(
                f"params {pattern!r} matches no trainable parameter; names look like {known}"
            )
        chosen |= found
    return [(name, p) for p, name in trainable.items() if p in chosen]


def _check_model(model: nn.Module, names: dict[nn.Parameter, str]) -> None:
    first = next(iter(names))
    for parameter, name in names.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UsageError(
                f"parameter {name!r} is not initialised; run the lazy module forward first"
            )
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise UsageError(
                f"parameter {name!r} is {parameter.dtype} on {parameter.device}, others are "
                f"{first.dtype} on {first.device}; move the model to one dtype and device"
            )
        if parameter.is_inference():
            raise UsageError(
                f"parameter {name!r} was made in inference mode, which autograd cannot use; "
                "build the model outside torch.inference_mode()"
            )
        if not parameter.isfinite().all():
            raise UsageError(f"parameter {name!r} contains NaN or infinity")
    if first.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"parameters are {first.dtype}; use model.float() or model.double()")
    for name, module in model.named_modules():
        random = isinstance(module, _DROPOUTS) and module.p > 0
        if module.training and (random or isinstance(module, _BATCH_NORMS)):
            raise UsageError(
                f"module {name!r} ({type(module).__name__}) is in training mode, where samples "
                "are random or coupled; call model.eval() first"
            )
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            raise UsageError(
                f"module {name!r} ({type(module).__name__}) has no running statistics and "
                "couples the samples; use track_running_stats=True"
            )


def _check_data(inputs: Tree, targets: Tensor, first: nn.Parameter) -> tuple[Tree, Tensor]:
    """The mini-batch, without inference tensors."""
    count = num_samples(inputs)
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        raise UsageError("targets must be one tensor whose first axis is the sample")
    if count == 0:
        raise UsageError("the mini-batch is empty; pass at least one sample")
    if count != len(targets):
        raise UsageError(f"{count} inputs but {len(targets)} targets")
    named = [(f"inputs{place}", leaf) for place, leaf in leaves(inputs)]
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.dtype != first.dtype:
            raise UsageError(
                f"{name} are {tensor.dtype}, parameters {first.dtype}; "
                f"convert with {name}.to({first.dtype})"
            )
    for name, tensor in [*named, ("targets", targets)]:
        if tensor.layout is not torch.strided or tensor.is_meta:
            kind = "meta" if tensor.is_meta else str(tensor.layout)
            raise UsageError(f"{name} are {kind} tensors; pass dense ones, with tensor.to_dense()")
        if tensor.device != first.device:
            raise UsageError(f"{name} are on {tensor.device}, the model is on {first.device}")
        if not tensor.is_floating_point() or tensor.isfinite().all():
            continue
        # An attention mask of minus infinities is no accident; NaN always is.
        if name == "targets" or tensor.isnan().any() or (tensor == torch.inf).any():
            raise UsageError(f"{name} contain NaN or infinity")
    with torch.inference_mode(False):
        inputs = map_tree(_usable, inputs)
        return inputs, _usable(targets)


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def mend_batch_norm(outputs: Tensor) -> bool:
    """Let gradients arrive contiguously at batch normalisations in the graph of ``outputs``.

    PyTorch's backward pass of batch normalisation on the CPU is wrong for a batch of one whose
    incoming gradient is transposed (seen in 2.14.1; instance normalisation uses it too).

    Returns:
        Whether there was any.
    """
    seen, stack, found = {outputs.grad_fn}, [outputs.grad_fn], False
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if node.name().startswith("NativeBatchNorm"):
            node.register_prehook(_contiguous)
            found = True
        for other, _ in node.next_functions:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return found


def _contiguous(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else g.contiguous() for g in gradients)


def _check_outputs(outputs: object, first: nn.Parameter) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != 1:
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(
            f"the model returns {got} for one sample; it must return one tensor with the sample "
            "axis first"
        )
    if outputs.dtype != first.dtype:
        raise UsageError(
            f"the model returns {outputs.dtype}, its parameters are {first.dtype}; "
            "let it compute in one precision"
        )
    if not outputs.numel():
        raise UsageError(
            f"the model returns {list(outputs.shape)} for one sample; without outputs there is no "
            "loss"
        )
    if not outputs.requires_grad:
        raise UsageError("the model's output does not depend on its trainable parameters")
    if not outputs.isfinite().all():
        raise UsageError(
            "model outputs of sample 0 are not finite; check the parameters and inputs for NaN "
            "or overflow"
        )


def _copied(inputs: Tree, samples: slice | list[int]) -> Tree:
    """Some samples; a model that writes into its input does not change the user's."""
    return map_tree(lambda t: t[samples].clone(), inputs)


def _let_allocator_keep_memory() -> None:
    """Free one large block, unused.

    Then glibc keeps freed blocks up to that size for the next allocation. Otherwise every
    micro-batch gets its memory anew from the kernel, page by page.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@contextmanager
def undisturbed(model: nn.Module, *, bounded: bool = False) -> Iterator[None]:
    """Leave no trace in a model: buffers and random states are afterwards as they were.

    Also after an exception. Compiled models run as they were written; gradients are off; float32
    is not rounded to fewer bits.

    Args:
        model: Of a request.
        bounded: The request has a bound on memory. Convolutions on CUDA then go without cuDNN,
            whose workspaces cannot be planned: up to 24 times a layer's input and output together
            were seen on an H100. Passes then take several times as long.

    Raises:
        UsageError: It is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    buffers = [
        (module, name, buffer, buffer.clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    # An embedding with a largest norm writes into its weight when it is called.
    written = [
        (module.weight, module.weight.detach().clone())
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    ]
    devices = {p.device for p in model.parameters()}
    on_cuda = [device for device in devices if device.type == "cuda"]
    with ExitStack() as stack:
        stack.enter_context(ieee_float32(device.type for device in devices))
        if bounded and on_cuda:
            stack.enter_context(without_cudnn())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # Without a graph, transformers would take a path that leaves padded positions out.
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(torch.random.fork_rng(devices=on_cuda))
        stack.enter_context(warnings.catch_warnings())
        # Operations without a batching rule of their own are noticed, and are no news to a user.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        if "torch._dynamo" in sys.modules:  # nothing is compiled otherwise
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for module, name, buffer, before, version in buffers:
                # Writes through .data leave the version as it is.
                if _version(buffer) != version or not _same(buffer, before):
                    buffer.copy_(before)
                module._buffers[name] = buffer
            for weight, before in written:
                weight.copy_(before)


def _named(samples: slice | list[int]) -> str:
    if isinstance(samples, slice):
        return f"{samples.start} to {samples.stop - 1}"
    return ", ".join(map(str, samples))


def _same(buffer: Tensor, before: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN included, as far as they can be compared."""
    if buffer.layout is not torch.strided or buffer.shape != before.shape:
        return True
    return bool(((buffer == before) | ((buffer != buffer) & (before != before))).all())


def _version(buffer: Tensor) -> int:
    """Changes with every write; inference tensors cannot be written."""
    return 0 if buffer.is_inference() else buffer._version
