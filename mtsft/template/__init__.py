"""From a dialogue to contexts and responses."""
