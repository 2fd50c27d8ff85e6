"""Models whose weights travel in installed packages: read from GGUF, kept once made."""
