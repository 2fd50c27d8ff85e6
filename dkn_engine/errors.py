"""The errors a caller may want to catch; everything else is TypeError or ValueError."""

from __future__ import annotations


class DknError(Exception):
    """Base class of the engine's own errors."""


class UserError(DknError, ValueError):
    """A mistake in what the user gave; the message is one line that says how to mend it."""


class FactError(UserError):
    """A fact that cannot be used; the message names file, line and fact id where known."""


class UnsupportedModelError(UserError):
    """A model whose layout the engine does not handle; says what was expected and found."""


class BackendError(DknError, RuntimeError):
    """A backend was asked for by name and cannot run here; says why."""


class RunDirectoryError(UserError):
    """A run directory that belongs to another configuration, model or list of facts."""


class WorkerError(DknError, RuntimeError):
    """Workers were lost so often that a run was given up; what is done is on disk."""
