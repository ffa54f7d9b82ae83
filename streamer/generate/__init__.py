"""Sequences that a model writes by itself, one step per call."""
