"""Robustness: perturbed queries, answered by a model with neurons suppressed or enhanced."""
