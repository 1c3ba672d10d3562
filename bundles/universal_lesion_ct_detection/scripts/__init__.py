"""Code of the universal lesion detection bundle; imported from the bundle's root as ``scripts``."""

from scripts.errors import show_in_one_line

# MONAI evaluates a config in any order, so there is no later place that is early enough.
show_in_one_line()
