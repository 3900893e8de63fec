"""Benchmarks: ``python -m benchmarks.<what>`` prints a table and writes JSON.

Contenders take turns within each round of one run, so a machine whose speed drifts is the same for
all of them; ratios are medians over rounds of the ratio within a round.
"""
