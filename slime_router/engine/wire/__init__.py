"""What workers' bytes go through first."""
