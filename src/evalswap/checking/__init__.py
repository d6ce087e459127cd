"""``evalswap check``: what a run would meet, found out in seconds without starting anything."""
