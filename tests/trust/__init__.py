"""What the project promises under faults, bad input and attack: one line each, with its trials and failures."""
