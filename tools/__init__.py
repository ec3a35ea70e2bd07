"""Verbs: what people and machines can ask for."""
