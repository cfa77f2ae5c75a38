"""What holds for every test: the same results on any machine, and no network."""

import os

# Before torch is imported: sums in one order however many cores there are, and workers that do not fight over them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["ACCELERATE_USE_CPU"] = "1"
for name in ("MMDIT_DEBUG", "MMDIT_FAULT"):
    os.environ.pop(name, None)

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("mmdit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("mmdit"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "mmdit")
