"""The modular network: experts, and an autoencoder that picks among them (docs/papers.md)."""
