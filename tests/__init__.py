"""Tests: one file a module, naive float64 oracles under ``reference/``."""
