"""Presets per model, as strict TOML."""
