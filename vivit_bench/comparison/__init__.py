"""Engines measured side by side: time, memory and agreement of one piece of work."""
