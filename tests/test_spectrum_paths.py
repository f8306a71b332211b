"""Stored spectra are found by the names users type, and what is missing is said."""

from pathlib import Path

import pytest
from spectrum_cases import SETTINGS, make_record

from vivit_bench.arguments import problem_slug
from vivit_bench.curvature.options import Blocks, Curvature, Samples
from vivit_bench.errors import UsageError
from vivit_bench.spectrum.paths import default_path, find_stored, stored_variants


def store(results_dir: Path, **settings: object) -> Path:
    record = make_record(**settings)
    return record.save(default_path(record.settings, results_dir))


@pytest.mark.parametrize(
    ("problem", "slug"),
    [
        ("cifar10_3c3d", "cifar10_3c3d"),
        ("net.py:make", "net-make"),
        ("./nets/small.py:make", "nets-small-make"),
        ("../a b/net.v2.py:make", "a-b-net-v2-make"),
    ],
)
def test_slug(problem: str, slug: str):
    assert problem_slug(problem) == slug


def test_default_path():
    assert default_path(SETTINGS, Path("r")) == Path("r/spectrum/cifar10_3c3d_exact_full_n128.csv")


def test_variants_of_one_problem_and_block_structure_only(tmp_path: Path):
    full = store(tmp_path)
    layer = store(tmp_path, blocks=Blocks.LAYER)
    store(tmp_path, problem="cifar10_3c3d_exact.py:full", data="own")
    variant = (Curvature.EXACT, Samples.FULL)
    found = stored_variants("cifar10_3c3d", Blocks.NONE, None, tmp_path)
    assert found[variant] == full
    assert [path for path in found.values() if path] == [full]
    assert stored_variants("cifar10_3c3d", Blocks.LAYER, None, tmp_path)[variant] == layer


def test_lone_csv_is_not_stored(tmp_path: Path):
    store(tmp_path).with_suffix(".json").unlink()
    with pytest.raises(UsageError, match="vivit-bench spectrum sweep cifar10_3c3d"):
        stored_variants("cifar10_3c3d", Blocks.NONE, None, tmp_path)


def test_batch_size_must_be_chosen_where_several_are_stored(tmp_path: Path):
    store(tmp_path, batch_size=8)
    store(tmp_path, batch_size=16, samples=Samples.FRAC)
    with pytest.raises(UsageError, match=r"8, 16.*--batch-size"):
        stored_variants("cifar10_3c3d", Blocks.NONE, None, tmp_path)
    found = stored_variants("cifar10_3c3d", Blocks.NONE, 16, tmp_path)
    assert [variant for variant, path in found.items() if path] == [(Curvature.EXACT, Samples.FRAC)]


def test_missing_batch_size_names_the_whole_command(tmp_path: Path):
    store(tmp_path, batch_size=8)
    command = f"spectrum sweep cifar10_3c3d --batch-size 32 --blocks layer --results-dir {tmp_path}"
    with pytest.raises(UsageError, match=command):
        stored_variants("cifar10_3c3d", Blocks.LAYER, 32, tmp_path)


def test_misspelt_problem_is_told_so(tmp_path: Path):
    with pytest.raises(UsageError, match="did you mean 'cifar10_3c3d'"):
        stored_variants("cifar10_3c3", Blocks.NONE, None, tmp_path)


@pytest.mark.parametrize("name", ["cifar10_3c3d_exact_full", "cifar10_3c3d_exact_full_n128"])
def test_variant_is_found_by_name(tmp_path: Path, name: str):
    path = store(tmp_path)
    store(tmp_path, blocks=Blocks.LAYER)
    assert find_stored(name, tmp_path) == path


def test_ambiguous_and_unknown_names(tmp_path: Path):
    store(tmp_path)
    store(tmp_path, batch_size=8)
    with pytest.raises(UsageError, match="several"):
        find_stored("cifar10_3c3d_exact_full", tmp_path)
    with pytest.raises(UsageError, match="did you mean cifar10_3c3d_exact_full"):
        find_stored("cifar10_3c3d_exact_ful", tmp_path)


def test_files_are_taken_as_they_are(tmp_path: Path):
    assert find_stored("somewhere/else.csv", tmp_path) == Path("somewhere/else.csv")
