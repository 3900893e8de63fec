"""C source of the block-transform convolution; compiled on first use by :mod:`speech.blockconv`."""
