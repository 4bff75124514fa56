"""The charts of a comparison, for the page and for papers."""
