"""Registries that a test may add to."""

from __future__ import annotations


def let_add(monkeypatch, *registries):
    """Let a test add to registries; afterwards they hold what they held before.

    What is built in registers itself once, when it is imported: here, before the copy is made.
    """
    for registry in registries:
        for name in registry.built_in():
            registry.get(name)
        monkeypatch.setattr(registry, "_items", dict(registry._items))
