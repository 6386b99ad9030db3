"""What processes report to one another through the state store, about once a second, and what follows from it."""
