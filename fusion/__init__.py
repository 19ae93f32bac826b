"""The method and what it keeps: task vectors, triggers, the store, versions, routing. Imports nothing above it."""
