"""Distances of spectra are over all D eigenvalues, the exact zeros among them."""

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectrum_cases import make_record

from vivit_bench.errors import UsageError
from vivit_bench.report.spectrum_comparison import comparison_csv, comparison_markdown
from vivit_bench.spectrum import SpectrumRecord, compare_spectra, spectral_distance

EIGENVALUES = st.lists(st.floats(-1e-6, 1e3), max_size=12).map(lambda x: sorted(x, reverse=True))


def all_logs(record: SpectrumRecord, cutoff: float) -> np.ndarray:
    """All D eigenvalues, clipped, on the log axis, sorted: the definition written out."""
    values = np.concatenate([record.eigenvalues, np.zeros(record.num_zeros)])
    return np.sort(np.log10(np.maximum(values, cutoff)))


@settings(deadline=None)
@given(EIGENVALUES, EIGENVALUES, st.integers(12, 50), st.sampled_from([1e-4, 1e-2]))
def test_distance_is_mean_gap_of_all_sorted_log_eigenvalues(
    first: list[float], second: list[float], num_params: int, cutoff: float
):
    a, b = (make_record(values, num_params=num_params) for values in (first, second))
    expected = np.abs(all_logs(a, cutoff) - all_logs(b, cutoff)).mean()
    assert spectral_distance(a, b, cutoff) == pytest.approx(expected, abs=1e-12)


def test_distance_without_any_zero_eigenvalue():
    a, b = make_record([10.0, 1.0], num_params=2), make_record([100.0, 1.0], num_params=2)
    assert spectral_distance(a, b, 1e-4) == pytest.approx(0.5)


def test_leading_errors_continue_with_exact_zeros():
    a = make_record([4.0, 2.0], num_params=4)
    b = make_record([5.0, 2.0, 1.0], num_params=4)
    comparison = compare_spectra(a, b, top=10, cutoff=1e-4)
    assert comparison.leading_a.tolist() == [4.0, 2.0, 0.0, 0.0]
    assert comparison.relative_errors.tolist() == [0.25, 0.0, math.inf, 0.0]
    assert comparison.trace_ratio == pytest.approx(8 / 6)
    assert (comparison.above_a, comparison.above_b) == (2, 3)


def test_spectrum_equals_itself():
    a = make_record([4.0, 2.0])
    comparison = compare_spectra(a, a, cutoff=1e-4)
    assert comparison.distance == 0
    assert comparison.trace_ratio == 1
    assert not comparison.relative_errors.any()


def test_models_of_different_size_are_refused():
    with pytest.raises(UsageError, match=r"D = 100.*D = 50"):
        compare_spectra(make_record(), make_record(num_params=50), cutoff=1e-4)


def test_csv_has_all_digits_and_one_row_a_quantity():
    third = 1 / 3
    comparison = compare_spectra(make_record([1.0]), make_record([third]), top=1, cutoff=1e-4)
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert [row["quantity"] for row in rows] == [
        "eigenvalue 1",
        "trace",
        "above cutoff",
        "log10 density",
    ]
    assert float(rows[0]["b"]) == third
    assert float(rows[0]["value"]) == 1 - third
    assert float(rows[3]["value"]) == comparison.distance


def test_markdown_is_a_table_of_equal_columns():
    comparison = compare_spectra(make_record(), make_record([1.0]), top=3, cutoff=1e-4)
    lines = comparison_markdown(comparison).splitlines()
    assert len(lines) == 2 + 3 + 3
    assert {line.count("|") for line in lines} == {6}
