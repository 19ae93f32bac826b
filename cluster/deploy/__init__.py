"""What a platform team installs condu from: the image, manifests, monitoring, and the builder for `serve deploy`."""
