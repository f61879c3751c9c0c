"""What is measured of tokens: what they were sampled from, what other models think of them."""
