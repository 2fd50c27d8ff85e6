"""Files whole or absent, and what every file of text goes through: strict JSON, paths, digests."""
