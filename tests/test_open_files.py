"""Connections need files, of which a process may open 1,024 by default."""

from __future__ import annotations

import subprocess
import sys

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1])))
from evalswap.cli import main
from evalswap.open_files import room_for_connections
main(["engines"])
print("room", room_for_connections(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def room(hard: int) -> list[int]:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(hard)], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split("room ")[-1].split()]


def test_a_command_raises_its_own_limit_as_far_as_it_may() -> None:
    assert room(900) == [900 - 256, 900, 900]
    assert room(200) == [16, 200, 200]
