"""A stored spectrum is exactly what was computed, and a pair of files is whole or refused."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectrum_cases import make_record

from vivit_bench.curvature.options import Curvature
from vivit_bench.errors import UsageError
from vivit_bench.spectrum import SpectrumRecord, load_spectrum, record

FLOATS = st.lists(
    st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20
)


def roundtrip(original: SpectrumRecord, folder: Path) -> SpectrumRecord:
    return load_spectrum(original.save(folder / "spectrum.csv"))


@settings(deadline=None)
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
    loaded = roundtrip(original, tmp_path)
    for name in ("settings", "num_params", "num_zeros", "trace", "loss", "provenance", "seconds"):
        assert getattr(loaded, name) == getattr(original, name), name
    assert loaded.settings.curvature is Curvature.MC


def test_layer_blocks_keep_their_order_and_merge_descending(tmp_path: Path):
    original = make_record(layers={"net.2": [4.0, 1.0], "net.0, odd": [3.0, 2.0]}, num_params=10)
    path = original.save(tmp_path / "layers.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["block"] for row in rows] == ["net.2", "net.2", "net.0, odd", "net.0, odd"]
    assert [row["index"] for row in rows] == ["1", "2", "1", "2"]
    loaded = load_spectrum(path)
    assert list(loaded.blocks) == ["net.2", "net.0, odd"]
    assert loaded.eigenvalues.tolist() == [4.0, 3.0, 2.0, 1.0]
    assert loaded.num_zeros == 6


def test_json_holds_the_numbers_the_csv_implies(tmp_path: Path):
    path = make_record([2.0, 1e-4, -1e-9], num_params=10).save(tmp_path / "s.csv")
    assert path.read_text().splitlines() == ["index,eigenvalue", "1,2.0", "2,0.0001", "3,-1e-09"]
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["num_params"] == 10
    assert stored["num_eigenvalues"] == 3
    assert stored["num_zeros"] == 7
    assert stored["num_above_cutoff"] == 1  # An eigenvalue at the cutoff is not above it.
    assert stored["settings"]["batch_size"] == 128


def test_either_file_names_the_pair(tmp_path: Path):
    make_record([2.0]).save(tmp_path / "s.csv")
    assert load_spectrum(tmp_path / "s.json").eigenvalues.tolist() == [2.0]


def test_interrupted_replacement_is_no_finished_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = make_record([2.0]).save(tmp_path / "s.csv")
    original = record.write_atomic

    def killed_before_json(target: Path, content: str) -> None:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        original(target, content)

    monkeypatch.setattr(record, "write_atomic", killed_before_json)
    with pytest.raises(KeyboardInterrupt):
        make_record([5.0]).save(path)
    with pytest.raises(UsageError, match=r"s\.json is missing"):
        load_spectrum(path)


def test_edited_eigenvalues_are_refused(tmp_path: Path):
    path = make_record([2.0]).save(tmp_path / "s.csv")
    path.write_text(path.read_text().replace("2.0", "2.5"))
    with pytest.raises(UsageError, match=r"not those s\.json describes"):
        load_spectrum(path)


@pytest.mark.parametrize(
    ("table", "description"),
    [
        ("a,b\n1,2\n", "{}"),
        ("index,eigenvalue\n", "[1]"),
        ("index,eigenvalue\n", "{"),
        ("", '{"format": "vivit-bench spectrum 1"}'),
    ],
)
def test_other_files_are_refused(tmp_path: Path, table: str, description: str):
    (tmp_path / "s.csv").write_text(table)
    (tmp_path / "s.json").write_text(description)
    with pytest.raises(UsageError):
        load_spectrum(tmp_path / "s.csv")


@pytest.mark.parametrize("key", ["settings", "trace", "provenance"])
def test_incomplete_description_is_refused(tmp_path: Path, key: str):
    path = make_record().save(tmp_path / "s.csv")
    description = json.loads(path.with_suffix(".json").read_text())
    del description[key]
    path.with_suffix(".json").write_text(json.dumps(description))
    with pytest.raises(UsageError, match=key):
        load_spectrum(path)


@pytest.mark.parametrize("name", ["s.txt", "s", "folder.csv"])
def test_unfit_output_names_are_refused(tmp_path: Path, name: str):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="output"):
        make_record().save(tmp_path / name)


@pytest.mark.parametrize("name", ["mine.csv", "mine.json"])
def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, name: str):
    (tmp_path / name).write_text("precious\n")
    with pytest.raises(UsageError, match="exists and is no spectrum"):
        make_record().save(tmp_path / "mine.csv")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_unwritable_place_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        make_record().save(tmp_path / "file" / "s.csv")
