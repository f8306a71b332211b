"""Implementations of the curvature quantities behind one interface."""

from vivit_bench.peers.engine import Engine, Quantity
from vivit_bench.peers.registry import engine_names, get_engine

__all__ = ["Engine", "Quantity", "engine_names", "get_engine"]
