"""The bundled corpus: ten speakers and eight noises, and the recipe that rebuilds them."""
