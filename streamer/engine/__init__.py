"""The synchronous core: owns what is true of a partition and decides; no I/O, no clock, no asyncio."""
