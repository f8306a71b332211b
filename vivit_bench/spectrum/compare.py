"""How far apart two spectra are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vivit_bench.errors import UsageError
from vivit_bench.spectrum.record import SpectrumRecord


@dataclass(frozen=True, eq=False)
class SpectrumComparison:
    """Spectrum B measured against spectrum A."""

    leading_a: NDArray[np.float64]
    """[k] leading eigenvalues of A, descending."""
    leading_b: NDArray[np.float64]
    """[k] leading eigenvalues of B, descending."""
    trace_a: float
    trace_b: float
    above_a: int
    """Eigenvalues of A above the cutoff."""
    above_b: int
    distance: float
    """Wasserstein-1 distance of the spectral densities over log10 eigenvalues, in decades."""

    @property
    def relative_errors(self) -> NDArray[np.float64]:
        """[k] |b - a| / |a|: 0 where both are zero, infinite where only a is."""
        return np.array(
            [
                _relative_error(a, b)
                for a, b in zip(self.leading_a.tolist(), self.leading_b.tolist(), strict=True)
            ]
        )

    @property
    def trace_ratio(self) -> float:
        """Trace of B over trace of A (NaN if A's is zero)."""
        return self.trace_b / self.trace_a if self.trace_a else float("nan")

    def rows(self) -> list[dict[str, str | float | int | None]]:
        """Return the comparison as table rows: quantity, a, b, measure, value.

        The last row's value is the distance, in decades.
        """
        leading = zip(self.leading_a.tolist(), self.leading_b.tolist(), strict=True)
        rows = [
            _row(f"eigenvalue {k}", a, b, "relative error", _relative_error(a, b))
            for k, (a, b) in enumerate(leading, 1)
        ]
        rows.append(_row("trace", self.trace_a, self.trace_b, "ratio b / a", self.trace_ratio))
        rows.append(
            _row(
                "above cutoff", self.above_a, self.above_b, "difference b - a",
                self.above_b - self.above_a,
            )
        )  # fmt: skip
        rows.append(_row("log10 density", None, None, "Wasserstein-1", self.distance))
        return rows


def compare_spectra(
    a: SpectrumRecord, b: SpectrumRecord, *, top: int = 10, cutoff: float
) -> SpectrumComparison:
    """Compare spectrum ``b`` with the reference ``a``.

    Args:
        a: The reference.
        b: The other spectrum, of as many parameters.
        top: Number of leading eigenvalues; a spectrum with fewer non-trivial ones
            continues with its exact zeros, up to D.
        cutoff: Positive; smaller eigenvalues count as equal to it in the distance.

    Returns:
        Relative errors of the leading eigenvalues, traces, counts and the distance.

    Raises:
        UsageError: The two have different numbers of parameters.
    """
    if a.num_params != b.num_params:
        raise UsageError(
            f"the spectra belong to models of different size: {a.settings.problem} with "
            f"D = {a.num_params}, {b.settings.problem} with D = {b.num_params}; "
            "compare spectra of one model"
        )
    count = min(top, a.num_params)
    return SpectrumComparison(
        leading_a=_leading(a, count),
        leading_b=_leading(b, count),
        trace_a=a.trace,
        trace_b=b.trace,
        above_a=int((a.eigenvalues > cutoff).sum()),
        above_b=int((b.eigenvalues > cutoff).sum()),
        distance=spectral_distance(a, b, cutoff),
    )


def spectral_distance(a: SpectrumRecord, b: SpectrumRecord, cutoff: float) -> float:
    """Wasserstein-1 distance between two spectral densities on a log10 axis, in decades.

    Every one of a model's D eigenvalues has weight 1/D; those below ``cutoff``, the exact
    zeros among them, lie at the cutoff. It is the mean distance between the sorted
    log-eigenvalues, so it is small where most eigenvalues are zero in both.
    """
    # Imported here: it takes longer than all other work of a plot or comparison.
    from scipy.stats import wasserstein_distance

    values_a, weights_a = _log_density(a, cutoff)
    values_b, weights_b = _log_density(b, cutoff)
    return float(wasserstein_distance(values_a, values_b, weights_a, weights_b))


def _log_density(
    record: SpectrumRecord, cutoff: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    clipped = np.append(np.maximum(record.eigenvalues, cutoff), cutoff)
    weights = np.append(np.ones(len(record.eigenvalues)), record.num_zeros)
    return np.log10(clipped), weights / record.num_params


def _leading(record: SpectrumRecord, count: int) -> NDArray[np.float64]:
    values = record.eigenvalues[:count]
    return np.pad(values, (0, count - len(values)))


def _relative_error(a: float, b: float) -> float:
    if a == b:
        return 0.0
    return abs(b - a) / abs(a) if a else float("inf")


def _row(
    quantity: str, a: float | None, b: float | None, measure: str, value: float
) -> dict[str, str | float | int | None]:
    return {"quantity": quantity, "a": a, "b": b, "measure": measure, "value": value}
