"""What the bytes of workers go through first, and the short way that some of them take."""
