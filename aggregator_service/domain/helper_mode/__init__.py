"""Helper mode decided: contributions, requests to helpers, and what moves a round on."""
