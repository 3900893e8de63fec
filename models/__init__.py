"""Small trained models, each with a card; ``speech.enhance`` uses ``denoise.icse`` by default."""
