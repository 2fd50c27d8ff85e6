"""Loops that numba compiles, shared by operations."""
