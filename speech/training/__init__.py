"""Training: what a run is told (config), and the loop that keeps it in a folder (trainer)."""
