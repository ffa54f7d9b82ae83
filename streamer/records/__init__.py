"""Bytes of records to values and back: events, predictions, the changelog."""
