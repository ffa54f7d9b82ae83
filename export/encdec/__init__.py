"""Encoder and decoder: a sequence is read whole, then another one is written, symbol by symbol."""
