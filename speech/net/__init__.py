"""Networks: how they are built, run and differentiated. Imports base, sound and modelfile."""
