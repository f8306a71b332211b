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
    """See `spectral_distance`, in decades."""

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
        rows.append(_row("distance above cutoff", None, None, "mean decades", self.distance))
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
        cutoff: Positive; eigenvalues above it are counted and make up the distance.

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
    """How far apart the non-trivial parts of two spectra are, in decades.

    With K the larger of the two numbers of eigenvalues above the cutoff, the mean over
    k = 1 .. K of ``|log10 a_(k) - log10 b_(k)|`` between the k-th largest eigenvalues; a spectrum
    with fewer than K above the cutoff continues with the cutoff. It is symmetric and does not
    depend on D: 0 for equal spectra, 1 where every eigenvalue differs by a factor of ten.

    Args:
        a: One spectrum.
        b: The other.
        cutoff: Positive.

    Returns:
        The distance; 0 where nothing is above the cutoff, NaN where both are infinite.
    """
    first, second = (_logs_above(record, cutoff) for record in (a, b))
    count = max(len(first), len(second))
    if not count:
        return 0.0
    first, second = (
        np.pad(logs, (0, count - len(logs)), constant_values=np.log10(cutoff))
        for logs in (first, second)
    )
    with np.errstate(invalid="ignore"):
        return float(np.abs(first - second).mean())


def _logs_above(record: SpectrumRecord, cutoff: float) -> NDArray[np.float64]:
    """log10 of the eigenvalues above the cutoff, descending."""
    return np.sort(np.log10(record.eigenvalues[record.eigenvalues > cutoff]))[::-1]


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
