"""Trials of strength: kills, damaged input, load."""
