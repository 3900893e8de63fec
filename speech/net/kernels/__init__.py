"""C sources of the time-frequency network; ``speech.net.tape`` compiles, loads and calls them."""
