"""Which fields each API knows, and what becomes of others."""
