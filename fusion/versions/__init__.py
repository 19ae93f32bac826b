"""What is published and how: bases, experts, manifests and their state, the commit rule, edits, verify and gc."""
