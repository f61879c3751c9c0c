"""What a model is loaded from."""
