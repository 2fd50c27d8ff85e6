"""A run shared among processes or machines."""
