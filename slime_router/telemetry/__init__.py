"""What is known of a request while it runs: for the log, the metrics, and the turns it leaves."""
