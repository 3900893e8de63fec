"""Oracles: the mathematics a second time, naive and in float64, never the code under test."""
