"""The HTTP edge: each route parses, calls one flow function and renders."""
