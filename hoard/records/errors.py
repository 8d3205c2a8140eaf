"""Errors that are meant for the user, and the exit statuses of every command."""

OK, FAILED, BAD_INPUT, BUSY, STOPPED = 0, 1, 2, 75, 130


class BadInput(ValueError):
    """An option, a file or a folder the user gave cannot be used; the message says what would be right."""


class Busy(Exception):
    """Another process is working in this folder."""
