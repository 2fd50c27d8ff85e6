"""Ways of grouping knowledge neurons, compared by the same measurements."""
