"""From a row to token ids and a complete sampling block; in one place, once."""
