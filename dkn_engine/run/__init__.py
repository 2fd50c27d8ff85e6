"""From facts to results: the pipeline, its stages and tasks, and workers that share them."""
