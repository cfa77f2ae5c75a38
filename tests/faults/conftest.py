"""The small store and recipe of the training tests."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location(
    "training_fixtures", Path(__file__).parents[1] / "training" / "conftest.py"
)
assert spec is not None and spec.loader is not None
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
store, recipe = fixtures.store, fixtures.recipe
