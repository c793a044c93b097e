"""What a client does for its own privacy: the policy it holds a run to, its own count, and its clip and noise."""
