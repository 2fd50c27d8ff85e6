"""Fact checking: whether neurons' scores tell true statements from false ones."""
