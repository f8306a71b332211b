"""Runs of other machines: what is stored of them, and which machines these were."""

from dataclasses import replace
from pathlib import Path

from vivit_bench.errors import VivitBenchError
from vivit_bench.store.identity import Identity
from vivit_bench.store.provenance import CARD
from vivit_bench.store.stored import StoredRun, read_header

_MACHINE = ("host", "cpu", "cores", "ram_bytes", *CARD)
"""Conditions that are a machine's own; code, libraries and data are those of all of a cluster."""


def as_elsewhere(results_dir: Path, identity: Identity, name: str | None = None) -> Identity:
    """The same result, of the machine that has made what is stored of it.

    For a process that runs nothing itself: what a node of a cluster has made holds under that
    node's conditions, which are not those of the machine where the user types.

    Args:
        results_dir: Folder of all results.
        identity: With this machine's facts.
        name: Of the run's folder; default: the identity's address.

    Returns:
        With those of the stored run; as it is where nothing can be read.
    """
    stored = _stored(results_dir, identity, name)
    if stored is None:
        return identity
    facts = {
        name: stored.environment[name]
        for name in _MACHINE
        if name in identity.environment and name in stored.environment
    }
    return replace(identity, environment={**identity.environment, **facts})


def made_on(results_dir: Path, identity: Identity, name: str | None = None) -> str | None:
    """The host of what is stored of a run, where alone it goes on; None where nothing can be read.

    Its first name, as clusters name their nodes.
    """
    stored = _stored(results_dir, identity, name)
    if stored is None:
        return None
    host = str(stored.environment.get("host") or "").partition(".")[0]
    return host or None


def _stored(results_dir: Path, identity: Identity, name: str | None) -> StoredRun | None:
    try:
        return read_header(results_dir / identity.experiment / (name or identity.address))
    except VivitBenchError:
        return None
