"""Lanes: a few Ray Train trainers that work through a queue of many tasks."""
