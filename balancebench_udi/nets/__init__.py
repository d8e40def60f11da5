"""Encoders, fusion and the model made of them."""
