"""Which worker a generation goes to."""
