"""The bundled corpus: ten speakers and ten noises, and the recipe that rebuilds them."""
