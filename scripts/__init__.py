"""A package, so that no other one of this name, in some environment, is found in its place."""
