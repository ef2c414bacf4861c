"""What the doors view and evaluate compute and draw."""
