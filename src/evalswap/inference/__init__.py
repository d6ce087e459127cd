"""Asking: requests out, answers in, nothing lost."""
