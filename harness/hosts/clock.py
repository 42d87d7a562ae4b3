"""`python -m harness.hosts.clock NS module arguments...`: runs a module whose monotonic clock is NS nanoseconds ahead
of its kernel's, so that what it writes down can be compared with what others write. `remote` and `runtime.placement`
call it.
"""

from __future__ import annotations

import runpy
import sys
import time

if __name__ == "__main__":
    ahead_ns = int(sys.argv[1])
    seconds, nanoseconds = time.monotonic, time.monotonic_ns
    time.monotonic = lambda: seconds() + ahead_ns * 1e-9
    time.monotonic_ns = lambda: nanoseconds() + ahead_ns
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
