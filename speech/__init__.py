"""Shared ground of the project: audio, corpora, mixing, models, training and enhancement.

Nothing is imported here, so that ``import speech.sound.audio`` costs no TensorFlow.
"""
