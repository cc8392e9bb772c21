"""How what strangers may have written is opened: as what it is, never through a link, without waiting for a FIFO.

It holds flags for `os.open` only; that a path is walked one name at a time, by `dir_fd`, is its users' care.
"""

import os

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOLDER = FILE | os.O_DIRECTORY
