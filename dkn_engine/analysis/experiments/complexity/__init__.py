"""Complexity: how degenerate the same facts are in short and in long texts, and by model size."""
