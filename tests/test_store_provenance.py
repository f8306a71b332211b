"""What is recorded of code, libraries and machine: it changes when it must, and only then."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import vivit_bench
from vivit_bench.store import (
    Provenance,
    code_fingerprint,
    differences,
    environment,
    provenance,
    same_numbers,
)
from vivit_bench.store.provenance import library_version

module = sys.modules["vivit_bench.store.provenance"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of two rooms and a module in place of this one."""
    root = tmp_path / "package"
    for name, text in {
        "__init__.py": "",
        "alone.py": "x = 1\n",
        "a/__init__.py": "",
        "a/one.py": '"""A room."""\n\ndef f(x):\n    """Add."""\n    return x + 1\n',
        "b/two.py": "class C:\n    y: int = 2\n    '''Said below.'''\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(vivit_bench, "__file__", str(root / "__init__.py"))
    yield root
    code_fingerprint.cache_clear()


def fingerprint(*rooms: str) -> str:
    code_fingerprint.cache_clear()
    return code_fingerprint(rooms) if rooms else code_fingerprint()


def test_words_and_layout_change_no_fingerprint(package: Path) -> None:
    before = fingerprint(), fingerprint("a", "b")
    (package / "a/one.py").write_text("def f(x):  # comment\n    'Another.'\n\n    return (x+1)\n")
    (package / "b/two.py").write_text("class C:\n    y: int = 2\n")
    assert (fingerprint(), fingerprint("a", "b")) == before
    assert len(before[0]) == 12


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a/one.py", "def f(x):\n    return x + 2\n"),
        ("a/one.py", "def f(x):\n    return 'Add.'\n"),
        ("a/new.py", "z = 1\n"),
    ],
)
def test_code_changes_the_fingerprint_of_its_room_alone(
    package: Path, file: str, text: str
) -> None:
    before = [fingerprint(*rooms) for rooms in ((), ("a",), ("b",), ("a", "b"), ("alone",))]
    (package / file).write_text(text)
    after = [fingerprint(*rooms) for rooms in ((), ("a",), ("b",), ("a", "b"), ("alone",))]
    assert [old != new for old, new in zip(before, after, strict=True)] == [
        True, True, False, True, False,
    ]  # fmt: skip


def test_a_renamed_file_is_other_code(package: Path) -> None:
    before = fingerprint("a")
    (package / "a/one.py").rename(package / "a/other.py")
    assert fingerprint("a") != before


def test_modules_are_rooms_too(package: Path) -> None:
    before = fingerprint("alone")
    (package / "alone.py").write_text("x = 2\n")
    assert fingerprint("alone") != before


def test_an_environment_is_what_it_is_asked_for() -> None:
    found = environment(("store",), ("torch", "host"), batch="abc")
    facts = provenance()
    assert found == {
        "code": code_fingerprint(("store",)),
        "torch": facts["torch"],
        "host": facts["host"],
        "batch": "abc",
    }


def test_facts_are_those_of_this_machine() -> None:
    facts: Provenance = provenance()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == library_version("torch")
    assert library_version("no-such-distribution") is None
    assert abs(facts["ram_bytes"] - psutil.virtual_memory().total) <= 2**25
    assert facts["started_at"].endswith("+00:00")
    assert facts["gpu"] is None or torch.cuda.is_available()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert facts["cpu"]
        assert facts["cpu"] in cpuinfo.read_text()
        assert facts["cpu"] == facts["cpu"].strip()


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards, a driver and libraries, as PyTorch and NVIDIA's tool tell them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = [
        SimpleNamespace(name="G", total_memory=5),
        SimpleNamespace(name="H", total_memory=6),
    ]
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(module, "_driver", lambda: "580.65.06")


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("device", "name", "size"),
    [(None, "G", 5), ("cpu", "G", 5), ("cuda", "G", 5), ("cuda:0", "G", 5), ("cuda:1", "H", 6)],
)
def test_the_chosen_card_is_recorded(
    monkeypatch: pytest.MonkeyPatch, device: str | None, name: str, size: int
) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    facts = provenance(device)
    assert {key: facts[key] for key in (*module.CARD, "cuda_allocator")} == {
        "gpu": name,
        "gpu_bytes": size,
        "cuda": "13.0",
        "cudnn": 91002,
        "driver": "580.65.06",
        "cuda_allocator": "max_split_size_mb:64",
    }
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.usefixtures("cards")
def test_a_card_that_is_not_here_is_none() -> None:
    assert provenance("cuda:2")["gpu"] is None


@pytest.mark.usefixtures("cards")
def test_on_a_card_the_environment_has_the_card_and_not_the_host_s_memory() -> None:
    libraries = ("torch", "host", "ram_bytes", "gpu")
    facts = provenance("cuda:1")
    expected = ["torch", "host", "gpu", "gpu_bytes", "cuda", "cudnn", "driver"]
    assert environment(("store",), libraries, device="cuda:1", batch="abc") == {
        "code": code_fingerprint(("store",)),
        **{name: facts[name] for name in expected},
        "batch": "abc",
    }
    on_cpu = environment(("store",), ("torch", "ram_bytes"))
    assert list(on_cpu) == ["code", "torch", "ram_bytes"]


@pytest.mark.parametrize(
    ("said", "number", "version"),
    [
        ("580.65.06\n580.65.06\n", 0, "580.65.06"),
        (None, 13000, "CUDA 13.0"),
        (None, 12080, "CUDA 12.8"),
        (None, 0, None),
        ("", 13000, "CUDA 13.0"),
    ],
)
def test_the_driver_is_asked_of_its_tool_or_else_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, said: str | None, number: int, version: str | None
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if said is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: number, raising=False)
    module._driver.cache_clear()
    try:
        assert module._driver() == version
    finally:
        module._driver.cache_clear()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_package_and_marked_where_edited(package: Path) -> None:
    from vivit_bench.store.provenance import _git_commit

    root = package.parent
    assert _git_commit() is None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = _git_commit()
    assert commit is not None
    assert git("rev-parse", "HEAD").startswith(commit)
    (package / "alone.py").write_text("x = 3\n")
    assert _git_commit() == f"{commit}-dirty"


def test_versions_of_the_code_that_give_the_same_numbers_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(same_numbers, "_NEWEST", {"old": "new", "new": "new"})
    assert differences({"code": "old", "torch": "2"}, {"code": "new", "torch": "2"}) == ""
    assert differences({"code": "old"}, {"code": "newer"}) == "code old -> newer"
    assert differences({"code": "old", "torch": "2"}, {"code": "new"}) == "torch 2 -> None"


def test_no_version_of_the_code_stands_twice() -> None:
    codes = [code for same in same_numbers._SAME for code in same]
    assert len(codes) == len(set(codes))
