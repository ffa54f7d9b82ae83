"""Encoder and decoder: a sequence is read whole, then another one is written, symbol by symbol."""

from .emit import export_pair

__all__ = ["export_pair"]
