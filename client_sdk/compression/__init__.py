"""What a client does to its delta so that fewer bytes leave: codes, chosen elements, what is left for the next one."""
