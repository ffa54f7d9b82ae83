"""Scenarios that run unchanged against a real broker and against the simulated one. Both must answer alike."""
