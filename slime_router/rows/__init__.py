"""Training rows from the turns of a session."""
