"""Settings of every command: frozen dataclasses, read from strict YAML and flags."""
