"""From files and hub data sets to batches: what exactly the loss sees."""
