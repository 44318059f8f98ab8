"""Decoding: a model's own words, token after token. It knows only the call of a model and the cache."""
