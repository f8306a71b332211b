"""Implementations of the curvature quantities behind one interface."""

from vivit_bench.peers.engine import OF_ENGINES, Engine, Quantity
from vivit_bench.peers.registry import engine_names, get_engine

__all__ = ["OF_ENGINES", "Engine", "Quantity", "engine_names", "get_engine"]
