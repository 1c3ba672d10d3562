"""Code of the universal lesion detection bundle; imported from the bundle's root as ``scripts``."""

import os

from scripts.errors import show_in_one_line

# MLflow would report its use to its makers; an archive's machine talks to nobody unless its owner says so.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# MONAI evaluates a config in any order, so there is no later place that is early enough.
show_in_one_line()
