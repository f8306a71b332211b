"""The proof that goes with products: plain autograd, one sample at a time.

For a random cotangent w_n of a drawn sample, v_n = J_n^T w_n is one backward pass of that sample
alone. Products send x = sum_m v_m / |v_m| forward and w_n back in their own micro-batches; there,
w_n . (J x)_n = v_n . x, and the backward pass of all w_n is the sum of the v_n. The loss and its
Hessian are compared with the user's own loss.
"""

import math
import time

import torch
from torch import Tensor

from vivit_bench.curvature.certificate import TOLERANCE, Certify, loss_errors
from vivit_bench.curvature.products import GgnProducts
from vivit_bench.curvature.results import Certificate
from vivit_bench.curvature.route import disagreement
from vivit_bench.errors import CertificateError


class ProductCheck:
    """What is compared for the products of one request.

    Args:
        products: To check, over all of the request's parameters.
        certify: On two samples (True), or on all of them (``"all"``).
        outputs: [N, ...] of the mini-batch, as the passes have them.

    Raises:
        CertificateError: A product failed.
    """

    def __init__(self, products: GgnProducts, certify: Certify, outputs: Tensor) -> None:
        start = time.perf_counter()
        batch = products.batch
        self._batch, self._products = batch, products
        self._tolerance = TOLERANCE[batch.dtype]
        self._errors: dict[str, float] = {}
        generator = torch.Generator().manual_seed(batch.approximation.seed)
        count = batch.num_samples if certify == "all" else 2
        self._samples = sorted(
            torch.randperm(batch.num_samples, generator=generator)[:count].tolist()
        )
        shape = (len(self._samples), *batch.output_shape)
        self._cotangents = torch.randn(shape, generator=generator, dtype=torch.float64).to(
            device=batch.device, dtype=batch.dtype
        )
        vector = self._direction(outputs)
        for part in products.micro_batches(batch.num_samples):
            self._compare(part, vector, outputs)
        self._compare_loss(outputs)
        self._seconds = time.perf_counter() - start

    def _alone(self, position: int) -> tuple[Tensor, Tensor]:
        """A drawn sample's outputs and v_n, by plain autograd."""
        n = self._samples[position]
        outputs = self._batch.plain_forward([n])
        cotangent = self._cotangents[position : position + 1]
        v = self._products.zeros()
        self._products.pull(outputs, cotangent, v)
        return outputs.detach(), v

    def _direction(self, outputs: Tensor) -> Tensor:
        """x, along which every drawn sample's derivative is a large number."""
        total = self._products.zeros()
        for position, n in enumerate(self._samples):
            alone, v = self._alone(position)
            line = disagreement(self._batch, n, alone, outputs[n : n + 1], self._tolerance)
            if line:
                raise CertificateError(line)
            total += v / (v.norm() or 1.0)
        return total

    def _compare(self, part: slice, vector: Tensor, outputs: Tensor) -> None:
        """One micro-batch of a product, if a drawn sample is in it."""
        inside = [i for i, n in enumerate(self._samples) if part.start <= n < part.stop]
        if not inside:
            return
        u = torch.zeros_like(outputs[part])
        for i in inside:
            u[self._samples[i] - part.start] = self._cotangents[i]
        together, tangent, pulled = self._products.derivatives(part, vector, u)
        expected = torch.zeros_like(pulled)
        size, length = 0.0, vector.norm().item()
        for i in inside:
            row, n = self._samples[i] - part.start, self._samples[i]
            alone, v = self._alone(i)
            line = disagreement(self._batch, n, alone, together[row : row + 1], self._tolerance)
            if line:
                raise CertificateError(line)
            found = (tangent[row].double() * self._cotangents[i].double()).sum()
            scale = v.norm().item() * length
            self._note("J x", abs(found - v @ vector).item(), scale)
            expected += v
            size += v.norm().item()
        self._note("J^T u", (pulled - expected).norm().item(), size)

    def _compare_loss(self, outputs: Tensor) -> None:
        """Loss, residual and Hessian product of the user's own loss, on the whole mini-batch."""
        batch = self._batch
        everything = slice(0, batch.batch_size)
        found = loss_errors(
            batch,
            outputs,
            batch.factor.value(outputs),
            lambda f, x: batch.factor.hessian_product(f, everything, x),
        )
        for what, error in found.items():
            self._note(what, error, 1.0)

    def _note(self, what: str, error: float, scale: float) -> None:
        ratio = error / scale if scale else error
        ratio = math.inf if math.isnan(ratio) else ratio
        self._errors[what] = max(self._errors.get(what, 0.0), ratio)

    def result(self) -> Certificate:
        """The certificate; its notes are those of the products.

        Raises:
            CertificateError: Something disagrees.
        """
        errors = self._errors | {"adjoint": self._products.progress.adjoint}
        worst = max(errors, key=lambda what: errors[what])
        if errors[worst] > self._tolerance:
            raise CertificateError(
                f"the products with the GGN failed their check by plain autograd: {worst} is off "
                f"by {errors[worst]:.1e}, more than {self._tolerance:.0e}, so nothing is returned; "
                "the model's derivatives in a mini-batch are not the samples' own (random, "
                "coupled or changing); call model.eval()"
            )
        return Certificate(
            samples=tuple(self._samples),
            num_samples=self._batch.num_samples,
            errors=errors,
            tolerance=self._tolerance,
            notes=tuple(self._products.progress.notes),
            seconds=self._seconds,
        )
