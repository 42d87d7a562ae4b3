"""What all tests share: one Hypothesis profile, and a heap of which a garbage collection sees what a test made.

A failing example prints the blob that shows it again.
"""

from __future__ import annotations

import gc
from importlib.util import find_spec

# A node with torch and pytest alone has no Hypothesis; tests/conftest.py leaves out the tests that import it.
if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # A deadline would measure the other processes of a shared machine, not the code.
    settings.register_profile("kvtier", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("kvtier")


def pytest_collection_finish() -> None:
    """Modules and collected tests live to the end: a full collection among thousands of them takes 0.2 s."""
    gc.collect()
    gc.freeze()
