"""A participant's protocol, kept pure: values in, the next action out; no file, no network, no clock."""
