"""Signals: reading and writing, spectra, mixing, changes, pictures. Imports base."""
