"""Sound files and signals: what their headers say. NumPy only."""
