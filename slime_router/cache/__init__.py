"""What was sent and sampled, found again by its text."""
