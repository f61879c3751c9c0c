"""What is reported of a generation once it is over."""
