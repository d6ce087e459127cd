"""From stored answers to scores; works offline on what is stored, and never asks."""
