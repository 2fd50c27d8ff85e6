"""The model comes in: loaded, told apart, its layers and weights found; a guest throughout."""
