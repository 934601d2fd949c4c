"""Asks an oracle questions about activations."""
