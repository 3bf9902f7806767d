"""Exported models: making them, and what they say about themselves."""
