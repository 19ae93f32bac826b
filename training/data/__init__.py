"""A task's images: where people keep them, what they hold, and how they are read."""
