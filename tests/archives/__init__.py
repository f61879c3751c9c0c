"""What every archive does, and routers that share one."""
