"""The objective, the step, and the loop around it."""
