"""What the DKNs of different facts share."""
