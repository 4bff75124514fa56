"""The charts of a comparison: on the page and for a paper."""
