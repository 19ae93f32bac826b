"""Shared fixtures: stores, the real S3 server, one Ray session."""

pytest_plugins = ["tests.plugins.ray_session", "tests.plugins.s3", "tests.plugins.stores"]
