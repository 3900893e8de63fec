"""Small trained models, each with a card; ``speech.enhance`` uses ``fcn.h5`` by default."""
