"""Parameter pruning: which channels and filters a network can do without (SPEC 2)."""
