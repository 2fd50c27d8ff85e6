"""Doors for code that was written for other packages."""

from dkn_engine.interchange.captum.layer_integrated_gradients import LayerIntegratedGradients

__all__ = ["LayerIntegratedGradients"]
