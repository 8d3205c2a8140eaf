"""`Child`: a process of this Python at the other end of a connection."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import Pipe


class Child(subprocess.Popen):
    """Runs `code` with these arguments; its last one is the file descriptor of its end of `connection`.

    A plain child process: multiprocessing's would run the caller's main file again, and its pools leave their workers
    behind when the caller is killed. This one is to end when its connection does. Ctrl-C is for the caller alone.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        self.connection, theirs = Pipe()
        descriptor = theirs.fileno()
        command = [sys.executable, "-c", code, *arguments, str(descriptor)]
        super().__init__(command, pass_fds=[descriptor], start_new_session=True)
        theirs.close()

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self.kill()
        self.wait()
