"""The model is run: texts encoded, prompts read once, few positions patched and run again."""
