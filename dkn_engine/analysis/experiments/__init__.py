"""One folder an experiment of the Neuro-Degeneracy Analytic Analysis Framework."""
