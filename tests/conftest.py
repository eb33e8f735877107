"""For every test. No time of an example is judged: a test machine is as fast as whatever else runs on it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("baton", deadline=None)
settings.load_profile("baton")
