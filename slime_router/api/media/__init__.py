"""Requests with pictures, sound or video."""
