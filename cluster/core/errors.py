"""Errors, sorted by what the caller does about them (STYLE 5).

Every message names the value that is wrong and the remedy. Pure.
"""

from __future__ import annotations


class BatonError(Exception):
    """Base of every error that Baton raises on purpose. Its text is fit to be shown to a person as it is."""


# -- retry ------------------------------------------------------------------------------------------------


class Unreachable(BatonError):
    """The other side was certainly not asked: nothing was sent. Try again, perhaps elsewhere."""


class OutcomeUnknown(BatonError):
    """It was asked and did not answer: it may have happened. Never the same as "no"."""


class JournalBusy(BatonError):
    """The disk is behind by a full queue, or too much waits to be committed. Nothing of this call was taken; try again
    later or refuse the order."""


# -- step down --------------------------------------------------------------------------------------------


class StepDown(BatonError):
    """Whoever catches this drops the permit before anything else."""


class StaleTerm(StepDown):
    """Somebody showed a higher term than ours."""


# -- stop the process -------------------------------------------------------------------------------------


class Stop(BatonError):
    """Going on could trade on a wrong belief. The process ends; the message tells the operator what to do."""


class InvariantViolation(Stop):
    """Something that cannot happen has happened."""


class InvalidTransition(InvariantViolation):
    """A (state, event) pair that is neither in the role table nor in IGNORED."""


class JournalCorrupt(Stop):
    """The journal on disk is not the one that was written."""


class JournalBroken(Stop):
    """The disk refused a write or a sync. The tail is unknown: reopen before writing again, since a second
    fsync may wrongly succeed."""


class ConfigError(BatonError):
    """What the user wrote cannot be right. Names the key, the value, and what would be accepted."""
