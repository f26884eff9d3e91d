"""A port for a rendezvous: `python -m shared.cluster.port JOB` prints one that is free on this node.

The search begins at a port that depends on the job, so that two jobs of one node that look at the same time do not
meet, and stays below the ports that the kernel hands out to outgoing connections (from 32768 on).
"""

import socket
import sys

from shared.errors import DataError

FIRST, NUM = 10_000, 20_000
"""Ports that are looked at."""


def free_port(job: int) -> int:
    """The first port from the job's own on that nobody listens on, at any address of this machine.

    Args:
        job: Number of the job.

    Raises:
        DataError: All are taken.
    """
    for step in range(NUM):
        port = FIRST + (job * 7 + step) % NUM  # neighbouring jobs have some room
        with socket.socket() as one:
            # As torchrun does: past connections do not count.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("", port))
            except OSError:
                continue
        return port
    raise DataError(f"no free port from {FIRST} to {FIRST + NUM - 1}")


if __name__ == "__main__":
    print(free_port(int(sys.argv[1])))
