"""One view of control, where several processes are one router."""
