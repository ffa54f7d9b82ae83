"""Where state lives: per model an arena with one row (slot) per stream, and one table of streams."""
