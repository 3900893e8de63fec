"""The modular network: experts, and an autoencoder of speech that picks among them (SPEC 6)."""
