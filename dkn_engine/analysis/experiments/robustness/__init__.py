"""Parts of robustness: perturbed queries and what is done to neurons."""
