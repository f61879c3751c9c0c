"""Several processes that serve as one router: the one that starts them, and each of them."""
