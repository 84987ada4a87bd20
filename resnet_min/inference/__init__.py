"""A trained net in the form it serves in."""
