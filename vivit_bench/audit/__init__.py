"""Stored results looked at from outside: are they whole, do they hold now, what changed."""
