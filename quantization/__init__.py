"""Quantization: codebooks of the weights, fine-tuning with them, the size by every count."""
