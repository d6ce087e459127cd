"""evalswap: swap the engine, keep the score."""

__version__ = "0.1.0"
