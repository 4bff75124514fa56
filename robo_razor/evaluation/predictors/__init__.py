"""Distances between a tuned policy and its base."""
