"""What all tests share: one Hypothesis profile. A failing example prints the blob that shows it again."""

from __future__ import annotations

from importlib.util import find_spec

# A node with torch and pytest alone has no Hypothesis; tests/conftest.py leaves out the tests that import it.
if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # A deadline would measure the other processes of a shared machine, not the code.
    settings.register_profile("kvtier", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("kvtier")
