"""The short way of a stream's plain chunks."""
