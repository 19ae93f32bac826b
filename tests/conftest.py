"""Shared fixtures: stores, the real S3 server, a small disk, one Ray session. Time is asserted nowhere."""

from hypothesis import settings

pytest_plugins = ["tests.plugins.disk", "tests.plugins.ray_session", "tests.plugins.s3", "tests.plugins.stores"]

settings.register_profile("condu", deadline=None)  # a busy machine is no failure
settings.load_profile("condu")
