"""captum's name for code that was written for it; see :mod:`dkn_engine.interchange.captum`."""

from dkn_engine.interchange.captum import LayerIntegratedGradients

__all__ = ["LayerIntegratedGradients"]
