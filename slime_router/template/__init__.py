"""The chat template, and what it puts between two turns."""
