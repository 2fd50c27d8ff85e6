"""Layer integrated gradients under captum's names, computed by the engine."""

from dkn_engine.interchange.captum.layer_integrated_gradients import LayerIntegratedGradients

__all__ = ["LayerIntegratedGradients"]
