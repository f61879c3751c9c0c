"""What the bytes of workers go through first."""
