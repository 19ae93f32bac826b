"""The HTTP service on Ray Serve: answers from the store's newest version."""
