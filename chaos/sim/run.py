"""Runs many plans, counts what they met, and judges the lot."""

from __future__ import annotations

import logging

import structlog


def silence() -> None:
    """The cores log as in production; of ten thousand clusters nobody reads it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
