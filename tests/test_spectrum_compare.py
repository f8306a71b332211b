"""Distances of spectra are between the eigenvalues above the cutoff."""

import csv
import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectrum_cases import make_record

from vivit_bench.errors import UsageError
from vivit_bench.report.spectrum import comparison_table
from vivit_bench.report.tables import TableFormat, render
from vivit_bench.spectrum import compare_spectra, spectral_distance

CUTOFF = 1e-4
EIGENVALUES = st.lists(st.floats(-1e-6, 1e3), max_size=12)


@settings(deadline=None)
@given(EIGENVALUES, EIGENVALUES, st.integers(12, 10**6))
def test_distance_is_symmetric_and_does_not_depend_on_the_number_of_parameters(
    first: list[float], second: list[float], num_params: int
):
    small = [make_record(values, num_params=12) for values in (first, second)]
    large = [make_record(values, num_params=num_params) for values in (first, second)]
    distance = spectral_distance(*small, CUTOFF)
    assert distance >= 0
    assert spectral_distance(*reversed(small), CUTOFF) == pytest.approx(distance)
    assert spectral_distance(*large, CUTOFF) == distance
    assert spectral_distance(small[0], small[0], CUTOFF) == 0


@pytest.mark.parametrize(
    ("a", "b", "decades"),
    [
        ([3.0, 0.5, 0.02], [30.0, 5.0, 0.2], 1.0),
        ([0.02, 3.0, 0.5], [0.2, 5.0, 30.0], 1.0),  # the order in the record does not matter
        # Four directions against two, which go on at the cutoff: (1 + 0 + 3 + 2) / 4.
        ([1e2, 1e1, 1e-1, 1e-2], [1e1, 1e1], 1.5),
        ([1e2, 1e1, 1e-1, 1e-2], [1e1, 1e1, 1e-4, -1e-9, 0.0], 1.5),  # not above the cutoff
        ([10.0, 1.0], [100.0, 1.0], 0.5),
        ([1.0], [], 4.0),
        ([1e-5], [1e-7, 0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_distance_by_hand(a: list[float], b: list[float], decades: float):
    records = [make_record(values, num_params=10) for values in (a, b)]
    assert spectral_distance(*records, CUTOFF) == pytest.approx(decades)


def test_leading_errors_continue_with_exact_zeros():
    a = make_record([4.0, 2.0], num_params=4)
    b = make_record([5.0, 2.0, 1.0], num_params=4)
    comparison = compare_spectra(a, b, top=10, cutoff=1e-4)
    assert comparison.leading_a.tolist() == [4.0, 2.0, 0.0, 0.0]
    assert [row["value"] for row in comparison.rows()[:4]] == [0.25, 0.0, math.inf, 0.0]
    assert comparison.trace_ratio == pytest.approx(8 / 6)
    assert (comparison.above_a, comparison.above_b) == (2, 3)


def test_spectrum_equals_itself():
    a = make_record([4.0, 2.0])
    comparison = compare_spectra(a, a, cutoff=1e-4)
    assert comparison.distance == 0
    assert comparison.trace_ratio == 1
    assert not any(row["value"] for row in comparison.rows()[:2])


def test_models_of_different_size_are_refused():
    with pytest.raises(UsageError, match=r"D = 100.*D = 50"):
        compare_spectra(make_record(), make_record(num_params=50), cutoff=1e-4)


def test_csv_has_all_digits_and_one_row_a_quantity():
    third = 1 / 3
    records = make_record([1.0]), make_record([third])
    comparison = compare_spectra(*records, top=1, cutoff=1e-4)
    table = comparison_table(comparison, *records, 1e-4)
    rows = list(csv.DictReader(io.StringIO(render(table, TableFormat.CSV))))
    assert [row["quantity"] for row in rows] == [
        "eigenvalue 1",
        "trace",
        "above cutoff",
        "distance above cutoff",
    ]
    assert float(rows[0]["b"]) == third
    assert float(rows[0]["value"]) == 1 - third
    assert float(rows[3]["value"]) == comparison.distance
