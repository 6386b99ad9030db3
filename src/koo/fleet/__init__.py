"""What a process tells the others on its state store, about once a second, and what follows from what they tell."""
