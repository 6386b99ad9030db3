"""Services that the platform offers to its own code."""
