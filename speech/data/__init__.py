"""Corpora, pairs and mixtures of noisy and clean speech. Imports base to net."""
