"""Analyses over a grid of models, facts and settings, kept on disk, and their page."""
