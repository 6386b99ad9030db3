"""What the processes on one state store report to each other, about once a second, and how each applies it."""
