"""Measurements of akd_ext. Nothing here is installed with the package."""
