"""Adapters for trainers: each makes a framework's own samples of a session's rows."""
