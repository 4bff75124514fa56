"""One experiment file becomes many runs. Needs no torch."""
