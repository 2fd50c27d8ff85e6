"""Parts of evolvability: training of chosen neurons alone, and what it changes."""
