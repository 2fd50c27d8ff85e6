"""Parts of fact checking: statements, scorers and how well they tell."""
