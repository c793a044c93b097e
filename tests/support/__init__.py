"""Real servers, databases and participants for the tests; nothing of it is part of the product."""
