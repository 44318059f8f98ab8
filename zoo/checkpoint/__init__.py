"""Weights in and out: one file for each reference family, all on one reversible rule table."""
