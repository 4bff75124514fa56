"""Meshes of the scene and the script that makes them."""
