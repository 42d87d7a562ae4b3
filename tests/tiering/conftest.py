"""What all tests share: one Hypothesis profile. A failing example prints the blob that shows it again."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Deadlines measure the neighbours on a shared machine, not the code.
settings.register_profile("kvtier", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvtier")
