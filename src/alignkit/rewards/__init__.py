"""What a completion is worth: to a run of `alignkit reward`, to a text classifier, or to a Python function."""
