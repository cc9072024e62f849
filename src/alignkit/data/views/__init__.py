"""Back from batches to text: what `alignkit inspect` shows."""
