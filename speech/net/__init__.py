"""Networks and what runs them; may import speech.base, sound and modelfile (until moved: speech)."""
