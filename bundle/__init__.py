"""What the scripts of the bundle share. Imports run one way: docs/architecture.md shows the order."""
