"""Evolvability: fine-tuning in which chosen neurons alone may change, and what a model learns."""
