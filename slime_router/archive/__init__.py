"""The archive: turns and sessions that several routers share, or that outlive one of them."""
