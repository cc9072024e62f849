"""What can be typed besides the stages; each module has one `run`."""
