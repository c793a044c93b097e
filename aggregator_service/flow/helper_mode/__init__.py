"""Helper mode: contributions come in, helpers are asked, and their masks are taken off the sum alone."""
