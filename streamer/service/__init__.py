"""The asyncio shell: it waits, hands over, and decides nothing about sequences."""
