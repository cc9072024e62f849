"""What every trainer of ours has in common: checkpoints one can trust, a loss that is watched, progress one can see."""
