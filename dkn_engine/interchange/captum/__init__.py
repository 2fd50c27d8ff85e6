"""Layer integrated gradients under captum's names, computed by the engine."""
