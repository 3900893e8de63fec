"""Training data; may import audio, mixing and corpora, not networks or training."""
