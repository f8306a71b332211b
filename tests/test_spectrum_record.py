"""A stored spectrum is exactly what was computed, and is whole or refused."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectrum_cases import make_record, settings_with, store_record

from vivit_bench.curvature.options import Curvature
from vivit_bench.errors import UsageError, VivitBenchError
from vivit_bench.spectrum import SpectrumRecord, SpectrumSettings, load_spectrum
from vivit_bench.spectrum.record import EXPERIMENT
from vivit_bench.store import DamagedRunError, Identity, StoredRun, load_run, open_run

FLOATS = st.lists(
    st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20
)


def roundtrip(original: SpectrumRecord, folder: Path) -> SpectrumRecord:
    return load_spectrum(store_record(folder, original).folder)


@settings(deadline=None, max_examples=50)
@given(FLOATS)
def test_eigenvalues_keep_every_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]):
    original = make_record(values)
    loaded = roundtrip(original, tmp_path_factory.mktemp("bits"))
    np.testing.assert_array_equal(loaded.eigenvalues, original.eigenvalues)
    numbers = ~np.isnan(original.eigenvalues)  # -0.0 keeps its sign, a NaN has none.
    signs = np.signbit(loaded.eigenvalues) == np.signbit(original.eigenvalues)
    assert signs[numbers].all()


def test_everything_else_survives(tmp_path: Path):
    original = make_record(
        mc_samples=2, curvature=Curvature.MC, checkpoint="weights.pt", device="cuda:3", num_params=7
    )
    stored = store_record(tmp_path, original)
    loaded = load_spectrum(stored)
    for name in (
        *("settings", "num_params", "num_samples", "num_outputs", "num_columns", "num_zeros"),
        *("trace", "loss", "solver_dtype", "threads", "compute_seconds", "certificate"),
    ):
        assert getattr(loaded, name) == getattr(original, name), name
    assert loaded.settings.curvature is Curvature.MC
    assert loaded.folder == stored.folder
    assert loaded.computed_on == stored.provenance["started_at"][:10]
    assert (original.folder, original.computed_on) == (None, "")


def test_layer_blocks_keep_their_order_and_merge_descending(tmp_path: Path):
    original = make_record(layers={"net.2": [4.0, 1.0], "net.0, odd": [3.0, 2.0]}, num_params=10)
    rows = list(csv.DictReader(io.StringIO(original.table())))
    assert [row["block"] for row in rows] == ["net.2", "net.2", "net.0, odd", "net.0, odd"]
    assert [row["direction"] for row in rows] == ["1", "2", "1", "2"]
    stored = store_record(tmp_path, original)
    loaded = load_spectrum(stored)
    assert list(loaded.blocks) == ["net.2", "net.0, odd"]
    assert loaded.eigenvalues.tolist() == [4.0, 3.0, 2.0, 1.0]
    assert loaded.num_zeros == 6
    described = stored.results["blocks"]["net.0, odd"]
    assert described == {"num_eigenvalues": 2, "num_above_cutoff": 2, "trace": 5.0}


def test_header_holds_the_numbers_the_table_implies(tmp_path: Path):
    stored = store_record(tmp_path, make_record([2.0, 1e-4, -1e-9], num_params=10))
    lines = (stored.folder / "eigenvalues.csv").read_text().splitlines()
    assert lines == ["direction,eigenvalue", "1,2.0", "2,0.0001", "3,-1e-09"]
    header = json.loads((stored.folder / "run.json").read_text())
    assert header["results"]["num_params"] == 10
    assert header["results"]["num_eigenvalues"] == 3
    assert header["results"]["num_zeros"] == 7
    assert header["results"]["num_above_cutoff"] == 1  # One at the cutoff is not above it.
    assert header["settings"]["batch_size"] == 128
    assert header["provenance"]["torch"]


def test_interrupted_computation_is_no_spectrum(tmp_path: Path):
    with open_run(tmp_path, Identity(EXPERIMENT, "s", {}, {})) as run:
        run.write("eigenvalues.csv", make_record().table())
    with pytest.raises(UsageError, match=r"was interrupted.*vivit-bench spectrum compute"):
        load_spectrum(run.folder)


TABLE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda path: path.write_text(path.read_text().replace("3.0", "9.0")),
    "cut": lambda path: path.write_text(path.read_text()[:-3]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", TABLE_DAMAGES)
def test_damaged_eigenvalues_are_refused(tmp_path: Path, damage: str):
    stored = store_record(tmp_path, make_record())
    TABLE_DAMAGES[damage](stored.folder / "eigenvalues.csv")
    with pytest.raises(VivitBenchError, match=r"eigenvalues\.csv.*--fresh") as refused:
        load_spectrum(stored)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("header", ["", "{", "[1]", "{}", '{"format": "vivit-bench run 1"}'])
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: str):
    stored = store_record(tmp_path, make_record())
    (stored.folder / "run.json").write_text(header)
    with pytest.raises(DamagedRunError, match=r"run\.json.*--fresh"):
        load_spectrum(stored.folder)


def test_a_run_of_something_else_is_refused(tmp_path: Path):
    with open_run(tmp_path, Identity("noise", "n", {}, {})) as run:
        other = run.finish({}, [])
    with pytest.raises(UsageError, match="a run of noise, not of spectrum"):
        load_spectrum(other.folder)
    with pytest.raises(UsageError, match="no run in"):
        load_spectrum(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("part", "key"), [("settings", "seed"), ("results", "trace"), ("provenance", "started_at")]
)
def test_incomplete_header_is_refused(tmp_path: Path, part: str, key: str):
    stored = store_record(tmp_path, make_record())
    del getattr(stored, part)[key]
    with pytest.raises(VivitBenchError, match=f"not a stored spectrum.*{key}"):
        load_spectrum(with_valid_header(stored))


@pytest.mark.parametrize("table", ["", "a,b\n1,2\n", "direction,eigenvalue\n1,one\n"])
def test_another_table_is_refused(tmp_path: Path, table: str):
    stored = store_record(tmp_path, make_record())
    stored.files.clear()
    (stored.folder / "eigenvalues.csv").write_text(table)
    with pytest.raises(VivitBenchError, match="not a stored spectrum"):
        load_spectrum(with_valid_header(stored))


def with_valid_header(stored: StoredRun) -> StoredRun:
    (stored.folder / "run.json").write_text(stored.to_json())
    return load_run(stored.folder, EXPERIMENT)


def test_settings_survive_their_flat_record():
    for changes in (
        {"curvature": "mc", "mc_samples": 3, "seed": 5, "dtype": "float64", "device": "cuda:7"},
        {"blocks": {"head": ["fc.*"]}, "params": ["layer4.*"], "checkpoint": "w.pt"},
        {"blocks": "layer", "samples": "frac", "cutoff": 1e-3},
    ):
        chosen = settings_with(**changes)
        record: dict[str, Any] = chosen.to_json()
        assert {key: record[key] for key in changes} == changes
        assert SpectrumSettings.from_json(json.loads(json.dumps(record))) == chosen
    for wrong in ({**record, "colour": 1}, {k: v for k, v in record.items() if k != "seed"}):
        with pytest.raises((KeyError, TypeError), match=r"colour|seed"):
            SpectrumSettings.from_json(wrong)
