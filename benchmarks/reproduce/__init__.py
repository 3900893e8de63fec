"""RESULTS.md: the commands it stands on, the raw files, the page."""
