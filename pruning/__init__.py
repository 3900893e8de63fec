"""Parameter pruning: which channels and filters a network can do without (docs/papers.md)."""
