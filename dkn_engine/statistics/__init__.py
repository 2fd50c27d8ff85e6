"""Estimates with intervals, paired tests, and the tables they stand in."""
