"""What was sampled, turn by turn."""
