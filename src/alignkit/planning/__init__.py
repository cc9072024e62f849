"""What a job will take, found by taking a step of it on tensors that have shapes and no memory."""
