"""Token ids as they are written in JSON, read and written fast."""
