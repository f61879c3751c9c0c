"""The dashboard: one page that shows what the router does and what its sessions hold."""
