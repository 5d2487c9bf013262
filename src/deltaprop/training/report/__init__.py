"""What a run reports: to the terminal, to TensorBoard, and as plots."""
