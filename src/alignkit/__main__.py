"""`python -m alignkit`, and so `torchrun -m alignkit` and `accelerate launch -m alignkit`."""

from alignkit.cli import main

main()
