"""An attention part for zoo, in a package of its own."""
