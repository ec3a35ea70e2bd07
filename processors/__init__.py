"""Folds: from events to tables, metrics and rankings."""
