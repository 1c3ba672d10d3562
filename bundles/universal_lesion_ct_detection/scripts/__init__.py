"""Code of the universal lesion detection bundle; imported from the bundle's root as ``scripts``."""
