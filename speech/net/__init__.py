"""Networks and what runs them; may import audio, STFT and model files, not data or training."""
