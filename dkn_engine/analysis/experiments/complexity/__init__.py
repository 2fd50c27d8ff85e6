"""Parts of complexity: longer forms of prompts and measures of them."""
