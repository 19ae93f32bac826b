"""Answers requests: the HTTP service on Ray Serve, from whatever version the store has now."""
