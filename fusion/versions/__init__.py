"""What was published and how: bases, experts, manifests and their state, the commit rule, and the care of all that."""
