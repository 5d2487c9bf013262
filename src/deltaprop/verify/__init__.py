"""Looking at and proving backward passes."""
