"""What the service shows of itself: metrics, logs, status page, HTTP."""
