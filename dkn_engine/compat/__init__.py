"""captum's name for code that was written for it; see :mod:`dkn_engine.interchange.captum`."""

from dkn_engine.interchange.captum.layer_integrated_gradients import LayerIntegratedGradients

__all__ = ["LayerIntegratedGradients"]
