"""What the apps stand on: attention blocks and common machinery. Calls no app."""
