"""The run directory: who may write it, what it records, what a person reads in it."""
